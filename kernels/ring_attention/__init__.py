"""Causal grouped-query attention for sequences that are sharded over devices."""

from kernels.ring_attention.api import IMPLEMENTATIONS, attention, stripe

__all__ = ["IMPLEMENTATIONS", "attention", "stripe"]
