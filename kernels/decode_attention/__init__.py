"""Attention of one query per sequence to a cache whose sequences differ in length."""

from kernels.decode_attention.api import IMPLEMENTATIONS, decode_attention

__all__ = ["IMPLEMENTATIONS", "decode_attention"]
