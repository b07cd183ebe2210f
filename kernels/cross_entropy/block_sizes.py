"""How tokens and vocabulary are divided into blocks, and what fits the VMEM of a chip."""

from __future__ import annotations

import dataclasses

from kernels import UnsupportedError
from kernels.tpu import LANES, ceil_div, round_up, vmem_bytes

SIDES = (1024, 512, 256, 128)  # of a block of logits, the fastest first


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Rows (tokens) and columns (vocab) of logits computed at once, and VMEM a kernel may use."""

    tokens: int = 512
    vocab: int = 512
    vmem_bytes: int = 60 << 20


def needed_bytes(block: int, d_model: int, itemsize: int, head_itemsize: int) -> int:
    """Returns the VMEM of a kernel with blocks of `block` tokens and vocabulary entries.

    It holds two blocks of activations, of their gradient and of the head, the cast head, an
    accumulator, and logits. `itemsize` and `head_itemsize` are bytes per element.
    """
    per_column = 5 * itemsize + 2 * head_itemsize + 4
    return block * d_model * per_column + 6 * 4 * block * block


def largest(d_model: int, itemsize: int, head_itemsize: int, vmem: int) -> int:
    """Returns the side of the largest block that `vmem` bytes hold, 0 if they hold none."""
    for side in SIDES:
        if needed_bytes(side, d_model, itemsize, head_itemsize) <= vmem - vmem // 16:
            return side
    return 0


def choose(
    tokens: int,
    vocab: int,
    d_model: int,
    itemsize: int,
    head_itemsize: int,
    vmem: int | None = None,
) -> BlockSizes:
    """Returns the block sizes for a chip.

    Args:
      tokens, vocab, d_model: dimensions of the matmul.
      itemsize, head_itemsize: bytes per element of the activations and of the head.
      vmem: bytes of VMEM; None takes those of this process's chip.

    Raises:
      UnsupportedError: where not even the smallest block fits.
    """
    vmem = vmem or vmem_bytes()
    side = largest(d_model, itemsize, head_itemsize, vmem)
    if not side:
        raise UnsupportedError(
            f"cross-entropy of width {d_model} does not fit {vmem >> 20} MiB of VMEM:"
            " use implementation='xla'"
        )
    # Equal blocks of tokens, so that little of the last one is padding.
    token_blocks = ceil_div(tokens, side)
    token_block = round_up(ceil_div(tokens, token_blocks), LANES)
    return BlockSizes(min(side, token_block), min(side, round_up(vocab, LANES)), vmem - vmem // 16)
