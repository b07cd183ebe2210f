"""Output matmul and softmax loss in one, without (tokens x vocabulary) logits in memory."""

from kernels.cross_entropy.api import IMPLEMENTATIONS, cross_entropy, token_losses

__all__ = ["IMPLEMENTATIONS", "cross_entropy", "token_losses"]
