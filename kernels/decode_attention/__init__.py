"""Attention of one query a row to a ragged cache of keys and values."""

from kernels.decode_attention.api import IMPLEMENTATIONS, decode_attention, quantize

__all__ = ["IMPLEMENTATIONS", "decode_attention", "quantize"]
