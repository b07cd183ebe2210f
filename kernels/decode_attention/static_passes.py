"""Static cycles of decoding attention: one key head, shared by eight query heads, and a full cache of `--seq` slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.decode_attention import pallas_tpu
from kernels.static.chips import placed
from kernels.static.passes import Pass, grid_step, inside, products, total
from kernels.static.schedule import Schedule, read

HEADS, GROUP = 8, 8


def count(name: str, schedule: Schedule, blocks: int) -> Pass:
    """The region with matrix products runs for each block; what begins and ends a head runs once."""
    loop, step = grid_step(schedule)
    (busy,) = [region for region in step.children if products(schedule, region)]
    runs = [(loop, blocks), (step, blocks)]
    for region in step.children:
        runs += inside(region, blocks if region is busy else 1)
    return total(name, schedule, runs, {"block": busy})


def compile_for(chip: str, slots: int, head_dim: int, cache: jnp.dtype) -> None:
    """Compiles the kernel for `chip`, with scales where the cache is int8."""
    shape = lambda *dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(dims, dtype)
    scales = [shape(HEADS, slots, dtype=jnp.float32)] * (2 if cache == jnp.int8 else 0)
    kv = [shape(HEADS, slots, head_dim, dtype=cache)] * 2
    inputs = placed(
        chip, shape(HEADS, GROUP, head_dim), *kv, shape(HEADS, dtype=jnp.int32), *scales
    )
    jax.jit(lambda *a: pallas_tpu.decode_attention(*a, interpret=False)).lower(*inputs).compile()


def ours(chip: str, args, dump: str) -> list[Pass]:
    """Compiles the kernel for `chip`; returns its pass over a cache in bf16, then in int8."""
    passes = []
    for cache in (jnp.bfloat16, jnp.int8):
        compile_for(chip, args.seq, args.head_dim, cache)
        block = min(pallas_tpu.BLOCK, args.seq)
        label = f"{args.seq} {jnp.dtype(cache).name} cache {block}"
        passes.append(count(label, read(dump, "decode_attention"), -(-args.seq // block)))
    return passes


BASELINES = {}
