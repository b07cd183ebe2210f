"""How tokens and vocabulary are cut into blocks, and what fits the vector memory of a chip."""

from __future__ import annotations

import dataclasses

from kernels.tpu import LANES, vmem_bytes


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """tokens, words: rows and columns of the logits computed at once; vmem_bytes: vector memory that a kernel may use."""

    tokens: int = 512
    words: int = 512
    vmem_bytes: int = 60 << 20


def needed_bytes(block: int, d_model: int, itemsize: int) -> int:
    """Returns what a kernel holds: three blocks of activations or head, two of each, an accumulator, a product, and logits."""
    return block * d_model * (3 * 2 * itemsize + 2 * 4) + 6 * 4 * block * block


def choose(tokens: int, words: int, d_model: int, itemsize: int = 2, vmem: int | None = None) -> BlockSizes:
    """Returns the sizes for a chip with `vmem` bytes of vector memory (the chip at hand if None).

    Raises:
      ValueError: where not even the smallest block fits.
    """
    vmem = vmem or vmem_bytes()
    usable = vmem - vmem // 16
    block = next((b for b in (1024, 512, 256, 128) if needed_bytes(b, d_model, itemsize) <= usable), None)
    if block is None:
        raise ValueError(f"cross-entropy of width {d_model} does not fit {vmem >> 20} MiB of vector memory: use implementation='xla'")
    whole = lambda n: -(-n // LANES) * LANES
    return BlockSizes(min(block, whole(-(-tokens // -(-tokens // block)))), min(block, whole(words)), usable)
