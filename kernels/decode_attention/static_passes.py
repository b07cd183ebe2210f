"""Cycles of attention in decoding: one key head with eight query heads and a full cache.

`--seq` is the number of slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.decode_attention import pallas_tpu
from kernels.static.chips import compile_inputs
from kernels.static.passes import Pass, grid_step, inside, matrix_slots, total
from kernels.static.schedule import Schedule, read
from kernels.tpu import ceil_div

HEADS, GROUP = 8, 8  # key heads of all sequences, and query heads per key head


def count(name: str, schedule: Schedule, blocks: int) -> Pass:
    """Returns the figures of a pass over one key head.

    The region with matmuls runs for each block of slots, the other regions once.

    Args:
      name: label of the pass.
      schedule: the kernel's schedule.
      blocks: blocks of slots.
    """
    loop, step = grid_step(schedule)
    (busy,) = [region for region in step.children if matrix_slots(schedule, region)]
    runs = [(loop, blocks), (step, blocks)]
    for region in step.children:
        runs += inside(region, blocks if region is busy else 1)
    return total(name, schedule, runs, {"block": busy})


def compile_for(chip: str, slots: int, head_dim: int, dtype: str = "bfloat16") -> None:
    """Compiles the kernel for `chip`, a key of `chips.CHIPS`, with a bf16 or an int8 cache."""
    q_MGH = jax.ShapeDtypeStruct((HEADS, GROUP, head_dim), jnp.bfloat16)
    kv_MSH = jax.ShapeDtypeStruct((HEADS, slots, head_dim), dtype)
    lengths_M = jax.ShapeDtypeStruct((HEADS,), jnp.int32)
    scales_MS = jax.ShapeDtypeStruct((HEADS, slots), jnp.float32)
    scales = (scales_MS,) * 2 if dtype == "int8" else ()

    def kernel(*arrays):
        return pallas_tpu.decode_attention(*arrays, interpret=False)

    jax.jit(kernel).lower(
        *compile_inputs(chip, q_MGH, kv_MSH, kv_MSH, lengths_M, *scales)
    ).compile()


def ours(chip: str, args: Any, dump: str) -> list[Pass]:
    """Compiles the kernel and returns the figures of its pass over a full cache.

    Args:
      chip: a key of `chips.CHIPS`.
      args: `seq`, the slots, and `head_dim`.
      dump: folder of libtpu's dumps.
    """
    compile_for(chip, args.seq, args.head_dim)
    block = min(pallas_tpu.BLOCK, args.seq)
    label = f"{args.seq} bfloat16 cache {block}"
    return [count(label, read(dump, "decode_attention"), ceil_div(args.seq, block))]


BASELINES: dict[str, Callable[[str, Any, str], list[Pass]]] = {}  # none to compare with
