"""The passes of a device with the flash attention kernels, in the interpreter without a TPU."""

from __future__ import annotations

import functools

from kernels.flash_attention import block_sizes
from kernels.flash_attention.pallas_tpu_backward import backward
from kernels.flash_attention.pallas_tpu_forward import forward
from kernels.ring_attention.ring import Blocks
from kernels.tpu import platform


def blocks(length: int, head_dim: int, itemsize: int) -> tuple[Blocks, int]:
    """Returns the passes for `length` tokens per device, and the tokens of padding they need."""
    sizes = block_sizes.choose(length, head_dim, itemsize)
    interpret = platform() != "tpu"
    passes = Blocks(
        functools.partial(forward, sizes=sizes, interpret=interpret),
        functools.partial(backward, sizes=sizes, interpret=interpret),
    )
    return passes, sizes.padding(length)
