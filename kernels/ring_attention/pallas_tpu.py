"""The passes of a device by the flash attention kernels; away from a TPU in the interpreter."""

from __future__ import annotations

import functools

from kernels.flash_attention import block_sizes
from kernels.flash_attention.api import platform
from kernels.flash_attention.pallas_tpu_backward import backward
from kernels.flash_attention.pallas_tpu_forward import forward
from kernels.ring_attention.ring import Blocks


def blocks(length: int) -> tuple[Blocks, int]:
    """Returns the passes for rows of `length` tokens, and by how many tokens to pad the rows."""
    sizes = block_sizes.choose(length)
    run = functools.partial(functools.partial, sizes=sizes, interpret=platform() != "tpu")
    return Blocks(run(forward), run(backward)), -length % sizes.queries
