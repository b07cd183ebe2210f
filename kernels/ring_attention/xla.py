"""The passes of a device for any backend: loops over square blocks of scores."""

from __future__ import annotations

from kernels.flash_attention import blocked
from kernels.ring_attention.ring import Blocks


def blocks(length: int, head_dim: int, itemsize: int) -> tuple[Blocks, int]:
    """Returns the passes for `length` tokens per device, and the tokens of padding they need."""
    return Blocks(blocked.forward, blocked.backward), blocked.padding(length)
