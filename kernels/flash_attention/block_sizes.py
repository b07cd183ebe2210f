"""Sizes of the blocks that a sequence is divided into, limited by the VMEM of a chip.

The sizes were chosen by the compiler's cycle counts on all chips (docs/kernels.md).
"""

from __future__ import annotations

import dataclasses

from kernels.tpu import LANES, ceil_div, round_up, vmem_bytes

LONG = 8192  # shortest sequence, in tokens, that takes two blocks of queries at once
SMALL_VMEM = 32 << 20  # bytes; a chip with less, such as v4, takes shorter blocks and fewer keys


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Numbers of rows and columns of the score matrix that are computed at once, in tokens.

    Args:
      block: queries, and keys, of a block. It is long enough to hide the latency of filling and
        draining the matrix units.
      queries: queries of a block in the forward pass, a multiple of `block`. With more of them each
        key block that is loaded into the matrix units serves more queries.
      columns: keys (queries, in the backward pass) whose scores are live at once. With more of them
        the scores no longer fit the registers and are spilled.
      diagonal: queries of a strip along the diagonal. Smaller strips compute fewer scores above the
        diagonal but load the matrix units more often.
      keys: keys that the forward pass keeps in VMEM at once, a multiple of `queries`.
      segment: tokens whose gradients the backward pass keeps in VMEM at once, a multiple of
        `queries`. A longer sequence is processed in segments.
      vmem_bytes: VMEM that a kernel may use, in bytes.
    """

    block: int = 1024
    queries: int = 1024
    columns: int = 512
    diagonal: int = 256
    keys: int = 8192
    segment: int = 16_384
    vmem_bytes: int = 60 << 20

    def padding(self, length: int) -> int:
        """Returns the tokens that complete the last block or, of several, the last segment."""
        return -length % (self.queries if length <= self.segment else self.segment)


def choose(length: int, head_dim: int, itemsize: int, vmem: int | None = None) -> BlockSizes:
    """Returns the block sizes for sequences of `length` tokens.

    Args:
      length: tokens per sequence.
      head_dim: elements of a head.
      itemsize: bytes per element of queries, keys and values.
      vmem: bytes of VMEM per core; None takes those of this process's chip.
    """
    vmem = vmem or vmem_bytes()
    is_roomy = vmem >= SMALL_VMEM
    # Long sequences process two blocks of queries at once. In short sequences, whose documents are
    # short too, that would compute more masked scores than it saves.
    pair = 2 if is_roomy and length >= LONG else 1
    longest_block = 1024 if is_roomy else 512
    usable = vmem - vmem // 16  # the compiler needs the rest for its own buffers
    units = ceil_div(length, pair * longest_block)
    # As few equal segments as possible whose gradients fit: one, if all of them do. Of several, the
    # last one may be padded. If not even single units fit, `backward` refuses the head dim.
    for parts in range(1, units + 1):
        units_per_segment = ceil_div(units, parts)
        segments = ceil_div(units, units_per_segment)
        blocks = pair * units_per_segment * segments
        # Equal blocks, so that as little as possible of the last one is padding.
        block = round_up(ceil_div(length, blocks), LANES)
        segment = blocks // segments * block
        if backward_bytes(segment, head_dim, itemsize, block) <= usable:
            break
    # Keys and values take at most five eighths of the VMEM. Queries, outputs, the state of the
    # softmax and scores need the rest.
    key_bytes = 2 * 2 * max(head_dim, LANES) * itemsize  # with its value, in two buffers
    most_keys = min(16_384 if is_roomy else 4096, usable * 5 // 8 // key_bytes)
    resident = max(pair, min(most_keys, length) // block)
    # The key blocks in VMEM must divide the sequence into equal groups of full query blocks.
    while blocks % resident or resident % pair:
        resident -= 1
    return BlockSizes(
        block=block,
        queries=pair * block,
        keys=resident * block,
        segment=segment,
        vmem_bytes=usable,
    )


def backward_bytes(segment: int, head_dim: int, itemsize: int, block: int) -> int:
    """Returns the VMEM in bytes that the backward pass needs.

    In bf16 it is within 10 % of libtpu's allocation. In fp32 it may exceed that by half.

    Args:
      segment: tokens of a segment.
      head_dim: elements of a head.
      itemsize: bytes per element of queries, keys and values.
      block: keys per block.
    """
    # A row is padded to full registers. A segment has three gradients in fp32 (4 bytes), and q and
    # do in two buffers, because the next ones are fetched meanwhile. A block has k, v and the three
    # outputs, also in two buffers, and spilled registers: many in fp32, whose matmuls split every
    # operand into parts in bf16.
    width = max(head_dim, LANES)
    of_segment = 3 * 4 + 2 * 2 * itemsize
    of_block = 2 * 5 * itemsize + (24 if itemsize == 2 else 128)
    return width * (segment * of_segment + block * of_block)


def pieces(length: int, size: int) -> list[slice]:
    """Splits `length` into slices of `size`; the last one may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
