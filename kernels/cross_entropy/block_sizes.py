"""Sizes of the blocks of tokens and of vocabulary entries, limited by the VMEM of a chip."""

from __future__ import annotations

import dataclasses

from kernels import UnsupportedError
from kernels.tpu import LANES, ceil_div, round_up, vmem_bytes

SIDES = (1024, 512, 256, 128)  # rows and columns of a block of logits, the fastest first


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Numbers of rows and columns of the logits that are computed at once.

    Args:
      tokens: rows.
      vocab: columns, vocabulary entries.
      vmem_bytes: VMEM that a kernel may use, in bytes.
    """

    tokens: int = 512
    vocab: int = 512
    vmem_bytes: int = 60 << 20


def needed_bytes(block: int, d_model: int, itemsize: int, head_itemsize: int) -> int:
    """Returns the VMEM in bytes of a kernel with square blocks of logits.

    Args:
      block: tokens, and vocabulary entries, of a block.
      d_model: width of the model.
      itemsize, head_itemsize: bytes per element of the activations and of the head.
    """
    # Per element of a (block, d_model) array: the activations and their gradient in two buffers
    # each, because the next block is fetched meanwhile; the head in two buffers, and once cast to
    # the activations' dtype; and the fp32 accumulator. Six fp32 (block, block) arrays hold the
    # logits and the values computed from them.
    per_column = 5 * itemsize + 2 * head_itemsize + 4
    return block * d_model * per_column + 6 * 4 * block * block


def largest(d_model: int, itemsize: int, head_itemsize: int, vmem: int) -> int:
    """Returns the side of the largest block that fits `vmem` bytes, 0 if none fits."""
    # The compiler needs a sixteenth of the VMEM for its own buffers.
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
      UnsupportedError: if the smallest block does not fit.
    """
    vmem = vmem or vmem_bytes()
    side = largest(d_model, itemsize, head_itemsize, vmem)
    if not side:
        raise UnsupportedError(
            f"cross-entropy of width {d_model} does not fit {vmem >> 20} MiB of VMEM:"
            " use implementation='xla'"
        )
    # Equal blocks of tokens, so that as little as possible of the last one is padding.
    token_blocks = ceil_div(tokens, side)
    token_block = round_up(ceil_div(tokens, token_blocks), LANES)
    return BlockSizes(min(side, token_block), min(side, round_up(vocab, LANES)), vmem - vmem // 16)
