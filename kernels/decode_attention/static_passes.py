"""Static cycles of decoding attention: one key head with eight query heads and a full cache.

`--seq` is the number of slots.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.decode_attention import pallas_tpu
from kernels.static.chips import compile_inputs
from kernels.static.passes import Pass, grid_step, inside, matrix_slots, total
from kernels.static.schedule import Schedule, read
from kernels.tpu import ceil_div

HEADS, GROUP = 8, 8


def count(name: str, schedule: Schedule, blocks: int) -> Pass:
    """Counts a pass: the region with matmuls runs for each block, the others once per head."""
    loop, step = grid_step(schedule)
    (busy,) = [region for region in step.children if matrix_slots(schedule, region)]
    runs = [(loop, blocks), (step, blocks)]
    for region in step.children:
        runs += inside(region, blocks if region is busy else 1)
    return total(name, schedule, runs, {"block": busy})


def compile_for(chip: str, slots: int, head_dim: int) -> None:
    """Compiles the kernel for `chip`."""
    q_MGH = jax.ShapeDtypeStruct((HEADS, GROUP, head_dim), jnp.bfloat16)
    kv_MSH = jax.ShapeDtypeStruct((HEADS, slots, head_dim), jnp.bfloat16)
    lengths_M = jax.ShapeDtypeStruct((HEADS,), jnp.int32)

    def kernel(*arrays):
        return pallas_tpu.decode_attention(*arrays, interpret=False)

    jax.jit(kernel).lower(*compile_inputs(chip, q_MGH, kv_MSH, kv_MSH, lengths_M)).compile()


def ours(chip: str, args, dump: str) -> list[Pass]:
    """Compiles the kernel for `chip`; returns its pass over a full cache."""
    compile_for(chip, args.seq, args.head_dim)
    block = min(pallas_tpu.BLOCK, args.seq)
    label = f"{args.seq} bfloat16 cache {block}"
    return [count(label, read(dump, "decode_attention"), ceil_div(args.seq, block))]


BASELINES = {}
