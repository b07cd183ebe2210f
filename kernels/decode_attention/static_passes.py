"""Cycles of attention in decoding: one key head with a full cache.

`--seq` is the number of slots, `--group` that of query heads per key head, `--cache` the dtype of
keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.decode_attention import pallas_tpu
from kernels.static.chips import CHIPS, compile_inputs
from kernels.static.passes import Pass, inside, matrix_slots, total
from kernels.static.schedule import Schedule, read
from kernels.tpu import ceil_div

HEADS, GROUP = 8, 8  # key heads of all sequences, and query heads per key head


def slot_bytes(head_dim: int, dtype: str) -> int:
    """Returns the bytes of a slot of one key head: its key, its value and their scales."""
    scales = 2 * 4 if dtype == "int8" else 0
    return 2 * head_dim * jnp.dtype(dtype).itemsize + scales


def read_cycles(chip: str, size: float) -> float:
    """Returns the cycles in which one core reads `size` bytes with its share of the bandwidth."""
    # The cores of a device work on different heads and share its published bandwidth.
    description = CHIPS[chip]
    return size / (description.hbm_bandwidth / description.cores) * description.clock


def count(name: str, schedule: Schedule, slots: int, block: int, slot_cycles: float) -> Pass:
    """Returns the figures of a pass over one key head.

    The loop with matmuls runs for each block but the last one. The code around it runs once per
    head. Loops without matmuls clear free slots, and a full cache has none.

    Args:
      name: label of the pass.
      schedule: the kernel's schedule.
      slots: filled slots of the head.
      block: slots per block.
      slot_cycles: cycles in which the core reads a slot.
    """
    (loop,) = [region for region in schedule.root.children if region.kind == "loop_body"]
    inner = [region for region in loop.walk() if region.kind == "loop_body" and region is not loop]
    (full,) = [region for region in inner if matrix_slots(schedule, region)]
    blocks = ceil_div(slots, block)
    cleared = [region for region in inner if region is not full]
    once = [region for region in loop.walk() if region is not full and region not in cleared]
    runs = [(region, 1) for region in once] + list(inside(full, blocks - 1))
    p = total(name, schedule, runs, {"full block": full})
    # A block is copied while the one before it is computed, so each takes the longer of both times.
    full_cycles = len(schedule.exclusive_use(full))
    last_cycles = p.cycles - (blocks - 1) * full_cycles
    with_reads = (blocks - 1) * max(full_cycles, block * slot_cycles)
    with_reads += max(last_cycles, block * slot_cycles)
    return dataclasses.replace(p, reads=round(slots * slot_cycles), with_reads=round(with_reads))


def compile_for(
    chip: str, slots: int, head_dim: int, dtype: str = "bfloat16", group: int = GROUP
) -> None:
    """Compiles the kernel.

    Args:
      chip: a key of `chips.CHIPS`.
      slots: slots of the cache.
      head_dim: size of a head.
      dtype: of the cache: bfloat16, float32 or int8.
      group: query heads per key head.
    """
    q_dtype = "bfloat16" if dtype == "int8" else dtype
    q_MGH = jax.ShapeDtypeStruct((HEADS, group, head_dim), q_dtype)
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
      args: `seq`, the slots, `head_dim`, `cache`, the dtype, and `group`.
      dump: folder of libtpu's dumps.
    """
    compile_for(chip, args.seq, args.head_dim, args.cache, args.group)
    block = pallas_tpu.block_slots(args.seq, args.head_dim, args.cache)
    label = f"{args.seq} {args.cache} cache {block}, group {args.group}"
    slot_cycles = read_cycles(chip, slot_bytes(args.head_dim, args.cache))
    return [count(label, read(dump, "decode_attention"), args.seq, block, slot_cycles)]


BASELINES: dict[str, Callable[[str, Any, str], list[Pass]]] = {}  # none to compare with
