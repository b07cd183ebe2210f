"""How tokens and vocabulary are cut into blocks, and what fits the vector memory of a chip."""

from __future__ import annotations

import dataclasses

from kernels import Refused
from kernels.tpu import LANES, vmem_bytes


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """tokens, words: rows and columns of the logits computed at once; vmem_bytes: vector memory that a kernel may use."""

    tokens: int = 512
    words: int = 512
    vmem_bytes: int = 60 << 20


def needed_bytes(block: int, d_model: int, itemsize: int, head_itemsize: int) -> int:
    """Returns what a kernel holds: two blocks of activations, of their gradient and of the head, its cast, an accumulator, and logits."""
    return block * d_model * (5 * itemsize + 2 * head_itemsize + 4) + 6 * 4 * block * block


def largest(d_model: int, itemsize: int, head_itemsize: int, vmem: int) -> int:
    """Returns the tokens and words of the largest block that `vmem` bytes hold, 0 if they hold none."""
    return next(
        (
            b
            for b in (1024, 512, 256, 128)
            if needed_bytes(b, d_model, itemsize, head_itemsize) <= vmem - vmem // 16
        ),
        0,
    )


def choose(
    tokens: int,
    words: int,
    d_model: int,
    itemsize: int,
    head_itemsize: int,
    vmem: int | None = None,
) -> BlockSizes:
    """Returns the sizes for a chip with `vmem` bytes of vector memory (the chip at hand if None).

    Raises:
      Refused: where not even the smallest block fits.
    """
    vmem = vmem or vmem_bytes()
    block = largest(d_model, itemsize, head_itemsize, vmem)
    if not block:
        raise Refused(
            f"cross-entropy of width {d_model} does not fit {vmem >> 20} MiB of vector memory: use implementation='xla'"
        )
    whole = lambda n: -(-n // LANES) * LANES
    return BlockSizes(
        min(block, whole(-(-tokens // -(-tokens // block)))),
        min(block, whole(words)),
        vmem - vmem // 16,
    )
