"""Causal grouped-query attention inside documents."""

from kernels.flash_attention.api import IMPLEMENTATIONS, attention, refusal

__all__ = ["IMPLEMENTATIONS", "attention", "refusal"]
