"""Static cycles of the cross-entropy kernels: `--seq` tokens against Code Llama 7B's head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.cross_entropy import block_sizes, pallas_tpu
from kernels.static.chips import CHIPS, compile_inputs
from kernels.static.passes import Pass, grid_step, inside, total
from kernels.static.schedule import Schedule, read
from kernels.tpu import ceil_div

D_MODEL, VOCAB, HEAD_DTYPE = 4096, 32_016, "float32"  # of Code Llama 7B


def count(name: str, schedule: Schedule, steps: int, rows: int) -> Pass:
    """Counts a pass: every step computes a block of logits.

    The start and end of each of the `rows` rows of blocks are regions inside the step.
    """
    loop, step = grid_step(schedule)
    runs = [(loop, steps), (step, steps)]
    for region in step.children:
        runs += inside(region, rows)
    return total(name, schedule, runs, {"block": step})


def compile_for(
    chip: str, tokens: int, d_model: int, vocab: int, head_dtype: str = HEAD_DTYPE
) -> block_sizes.BlockSizes:
    """Compiles all kernels and returns their block sizes.

    Args:
      chip: a key of `chips.CHIPS`.
      tokens, d_model, vocab: dimensions of the matmul.
      head_dtype: dtype of the head; activations are bf16.
    """
    x_TD = jax.ShapeDtypeStruct((tokens, d_model), jnp.bfloat16)
    head_DV = jax.ShapeDtypeStruct((d_model, vocab), head_dtype)
    targets_T = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    weights_T = jax.ShapeDtypeStruct((tokens,), jnp.float32)
    itemsizes = 2, jnp.dtype(head_dtype).itemsize
    vmem = CHIPS[chip].vmem_bytes
    sizes = block_sizes.choose(tokens, vocab, d_model, *itemsizes, vmem=vmem)

    def loss(*arrays):
        return pallas_tpu.losses_and_gradients(*arrays, (), sizes=sizes, interpret=False)

    jax.jit(loss).lower(*compile_inputs(chip, x_TD, head_DV, targets_T, weights_T)).compile()
    return sizes


def ours(chip: str, args, dump: str) -> list[Pass]:
    """Compiles both kernels for `chip`; returns the forward pass with dx, then the head's.

    `args` may name another head by d_model, vocab and head, its dtype.
    """
    d_model = getattr(args, "d_model", D_MODEL)
    vocab = getattr(args, "vocab", VOCAB)
    sizes = compile_for(chip, args.seq, d_model, vocab, getattr(args, "head", HEAD_DTYPE))
    token_blocks = ceil_div(args.seq, sizes.tokens)
    vocab_blocks = ceil_div(vocab, sizes.vocab)
    rows = {"cross_entropy_forward": token_blocks, "cross_entropy_head": vocab_blocks}
    passes = []
    for name, count_of_rows in rows.items():
        label = f"{args.seq} {name} {sizes.tokens} x {sizes.vocab}"
        steps = token_blocks * vocab_blocks
        passes.append(count(label, read(dump, name), steps, count_of_rows))
    return passes


BASELINES = {}
