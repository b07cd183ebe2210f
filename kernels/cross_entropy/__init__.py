"""Output matmul and cross-entropy fused: the logits of all tokens are never in memory."""

from kernels.cross_entropy.api import IMPLEMENTATIONS, cross_entropy, token_losses

__all__ = ["IMPLEMENTATIONS", "cross_entropy", "token_losses"]
