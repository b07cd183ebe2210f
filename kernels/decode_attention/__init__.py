"""Attention of new queries to a cache whose sequences differ in length."""

from kernels.decode_attention.api import IMPLEMENTATIONS, decode_attention
from kernels.decode_attention.several import extend_attention

__all__ = ["IMPLEMENTATIONS", "decode_attention", "extend_attention"]
