"""Attention of one query per sequence to a cache of keys and values of different lengths."""

from kernels.decode_attention.api import IMPLEMENTATIONS, decode_attention

__all__ = ["IMPLEMENTATIONS", "decode_attention"]
