"""How a row is cut into blocks, and what fits the vector memory of a chip."""

from __future__ import annotations

import dataclasses

from kernels.tpu import LANES, vmem_bytes

LONG = 8192


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Rows and columns of the score matrix computed at once.

    block: queries, and keys, of a block; long enough to hide the latency of filling and draining the matrix units.
    queries: of a block in the forward pass, a multiple of block: more of them load the matrix units less often.
    columns: keys (queries, in the backward pass) whose scores with a block are alive at once; more of them spill registers.
    diagonal: step along the diagonal; smaller steps compute less above it but load the matrix units more often.
    keys: keys that the forward pass holds in vector memory at once; a multiple of queries.
    vmem_bytes: vector memory that a kernel may use.
    """

    block: int = 1024
    queries: int = 1024
    columns: int = 512
    diagonal: int = 256
    keys: int = 8192
    vmem_bytes: int = 60 << 20


def choose(length: int, vmem: int | None = None) -> BlockSizes:
    """Returns the sizes for rows of `length` tokens on a chip with `vmem` bytes of vector memory (the chip at hand if None).

    Long rows take twice the queries at once; in short ones, whose documents are short too, that computes more in vain.
    """
    vmem = vmem or vmem_bytes()
    roomy = vmem >= 32 << 20
    pair = 2 if roomy and length >= LONG else 1
    blocks = pair * -(-length // (pair * (1024 if roomy else 512)))
    block = -(-length // (blocks * LANES)) * LANES
    resident = max(pair, min(16384 if roomy else 4096, length) // block)
    while blocks % resident or resident % pair:
        resident -= 1
    return BlockSizes(
        block=block, queries=pair * block, keys=resident * block, vmem_bytes=vmem - vmem // 16
    )


def backward_bytes(length: int, head_dim: int, block: int) -> int:
    """Returns the vector memory of the backward pass, as the compiler lays it out to within a tenth.

    Of one head it keeps three fp32 gradients, and q and do in bf16 for two heads in flight; then there are the blocks of k,
    v and what is written, and spilled registers.
    """
    width = max(head_dim, LANES)
    return length * width * (3 * 4 + 2 * 2 * 2) + block * width * 44


def pieces(length: int, size: int) -> list[slice]:
    """Cuts `length` into slices of `size`; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
