"""Static cycles of the cross-entropy kernels: `--seq` tokens against Code Llama 7B's head, on one core."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.cross_entropy import block_sizes, pallas_tpu
from kernels.static.chips import VMEM_MIB, placed
from kernels.static.passes import Pass, grid_step, inside, total
from kernels.static.schedule import Schedule, read

D_MODEL, WORDS = 4096, 32_016


def count(name: str, schedule: Schedule, steps: int, rows: int) -> Pass:
    """Every step has a block of logits; what begins and ends a row of blocks stands in regions of its own."""
    loop, step = grid_step(schedule)
    runs = [(loop, steps), (step, steps)]
    for region in step.children:
        runs += inside(region, rows)
    return total(name, schedule, runs, {"block": step})


def compile_for(
    chip: str, tokens: int, d_model: int, words: int, head: str = "float32"
) -> block_sizes.BlockSizes:
    """Compiles all kernels for `chip`; returns their block sizes."""
    x_TD, head_DV = (
        jax.ShapeDtypeStruct((tokens, d_model), jnp.bfloat16),
        jax.ShapeDtypeStruct((d_model, words), head),
    )
    columns = (
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    sizes = block_sizes.choose(
        tokens, words, d_model, 2, jnp.dtype(head).itemsize, vmem=VMEM_MIB[chip] << 20
    )
    loss = lambda *a: pallas_tpu.losses_and_gradients(*a, None, (), sizes=sizes, interpret=False)
    jax.jit(loss).lower(*placed(chip, x_TD, head_DV, *columns)).compile()
    return sizes


def ours(chip: str, args, dump: str) -> list[Pass]:
    """Compiles our two kernels for `chip`; returns their passes, forward with dx then the head's gradient.

    `args` may name another head by d_model, words and head, its dtype.
    """
    d_model, n_words, head = (
        getattr(args, name, usual)
        for name, usual in (("d_model", D_MODEL), ("words", WORDS), ("head", "float32"))
    )
    sizes = compile_for(chip, args.seq, d_model, n_words, head)
    tokens, words = -(-args.seq // sizes.tokens), -(-n_words // sizes.words)
    kernels = {"cross_entropy_forward": tokens, "cross_entropy_head": words}
    label = lambda name: f"{args.seq} {name} {sizes.tokens} x {sizes.words}"
    return [
        count(label(name), read(dump, name), tokens * words, rows) for name, rows in kernels.items()
    ]


BASELINES = {}
