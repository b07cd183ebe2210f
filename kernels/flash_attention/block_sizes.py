"""How a row is cut into blocks, and what fits the vector memory of each chip."""

from __future__ import annotations

LANES = 128
BLOCK = 1024  # rows of a query or key block: long enough to hide the latency of filling and draining the matrix units
COLUMNS = 512  # keys whose scores are alive at once: more spill registers
DIAGONAL = 256  # rows of a step along the diagonal: smaller steps compute less above it, but load the matrix units more often
RESIDENT_KEYS = {"v4": 4096}  # keys held in vector memory at once
VMEM_BYTES = {"v4": 16 << 20, "v5p": 64 << 20, "tpu7x": 64 << 20, "v5e": 128 << 20, "v6e": 128 << 20}


def block_length(length: int) -> int:
    """Returns the block, a multiple of the lanes and at most BLOCK, that pads `length` least."""
    blocks = -(-length // BLOCK)
    return -(-length // (blocks * LANES)) * LANES


def pieces(length: int, size: int) -> list[slice]:
    """Cuts `length` into slices of `size`; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
