"""Causal grouped-query attention inside documents, for sequences sharded over devices."""

from kernels.ring_attention.api import IMPLEMENTATIONS, attention, stripe

__all__ = ["IMPLEMENTATIONS", "attention", "stripe"]
