"""Causal grouped-query attention that does not cross document boundaries."""

from kernels.flash_attention.api import IMPLEMENTATIONS, attention, refusal

__all__ = ["IMPLEMENTATIONS", "attention", "refusal"]
