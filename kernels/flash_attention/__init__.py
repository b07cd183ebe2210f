"""Causal grouped-query attention inside documents."""

from kernels.flash_attention.api import IMPLEMENTATIONS, attention

__all__ = ["IMPLEMENTATIONS", "attention"]
