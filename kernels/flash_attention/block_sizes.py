"""How a sequence is divided into blocks, and what fits the VMEM of a chip."""

from __future__ import annotations

import dataclasses

from kernels.tpu import LANES, ceil_div, round_up, vmem_bytes

LONG = 8192  # tokens from which a sequence counts as long


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Rows and columns of the score matrix that are computed at once.

    Args:
      block: queries, and keys, of a block; long enough to hide the latency of filling and draining
        the matrix units.
      queries: queries of a block in the forward pass, a multiple of `block`. More of them load the
        matrix units less often.
      columns: keys (queries, in the backward pass) whose scores are live at once. More of them
        spill registers.
      diagonal: step along the diagonal. Smaller steps compute less above it but load the matrix
        units more often.
      keys: keys that the forward pass keeps in VMEM at once; a multiple of `queries`.
      vmem_bytes: VMEM that a kernel may use.
    """

    block: int = 1024
    queries: int = 1024
    columns: int = 512
    diagonal: int = 256
    keys: int = 8192
    vmem_bytes: int = 60 << 20


def choose(length: int, vmem: int | None = None) -> BlockSizes:
    """Returns the sizes for sequences of `length` tokens on a chip with `vmem` bytes of VMEM.

    The chip of this process if `vmem` is None. Long sequences process twice the queries at once.
    In short ones, whose documents are short too, that would compute more masked scores.
    """
    vmem = vmem or vmem_bytes()
    roomy = vmem >= 32 << 20
    pair = 2 if roomy and length >= LONG else 1
    longest_block = 1024 if roomy else 512
    blocks = pair * ceil_div(length, pair * longest_block)
    block = round_up(ceil_div(length, blocks), LANES)
    most_keys = 16_384 if roomy else 4096
    resident = max(pair, min(most_keys, length) // block)
    # The blocks in VMEM must divide the sequence into equal groups of whole query blocks.
    while blocks % resident or resident % pair:
        resident -= 1
    return BlockSizes(
        block=block,
        queries=pair * block,
        keys=resident * block,
        vmem_bytes=vmem - vmem // 16,
    )


def backward_bytes(length: int, head_dim: int, block: int) -> int:
    """Returns the VMEM of the backward pass, within a tenth of the compiler's own layout.

    One head takes three fp32 gradients, and q and do in bf16 for two heads in flight. The blocks
    of k, v and the outputs, and spilled registers, come on top.
    """
    width = max(head_dim, LANES)
    return length * width * (3 * 4 + 2 * 2 * 2) + block * width * 44


def pieces(length: int, size: int) -> list[slice]:
    """Splits `length` into slices of `size`; the last one may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
