"""Cycles of the cross-entropy kernels, counted from their schedules.

`--seq` is the number of tokens; the head is that of Code Llama 7B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.cross_entropy import block_sizes, pallas_tpu
from kernels.static.chips import CHIPS, compile_inputs
from kernels.static.passes import Pass, grid_step, inside, total
from kernels.static.schedule import Schedule, read
from kernels.tpu import ceil_div

D_MODEL, VOCAB, HEAD_DTYPE = 4096, 32_016, "float32"  # of Code Llama 7B


def count(name: str, schedule: Schedule, steps: int, rows: int) -> Pass:
    """Returns the figures of a pass in which every grid step computes a block of logits.

    Args:
      name: label of the pass.
      schedule: the kernel's schedule.
      steps: grid steps, one per block of logits.
      rows: rows of blocks. Regions inside the step start and end each of them.
    """
    loop, step = grid_step(schedule)
    runs = [(loop, steps), (step, steps)]
    for region in step.children:
        runs += inside(region, rows)
    return total(name, schedule, runs, {"block": step})


def compile_for(
    chip: str, tokens: int, d_model: int, vocab: int, head_dtype: str = HEAD_DTYPE
) -> block_sizes.BlockSizes:
    """Compiles both kernels and returns their block sizes.

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


def ours(chip: str, args: Any, dump: str) -> list[Pass]:
    """Compiles both kernels and returns the figures of the forward pass with dx, then of dhead.

    Args:
      chip: a key of `chips.CHIPS`.
      args: `seq`, and optionally `d_model`, `vocab` and `head` (the dtype) of another head.
      dump: folder of libtpu's dumps.
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


BASELINES: dict[str, Callable[[str, Any, str], list[Pass]]] = {}  # none to compare with
