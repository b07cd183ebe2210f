"""Rotary position embeddings (RoPE) of Llama, and how they are scaled to a longer context.

Unscaled, pair i of a head turns by position x theta^(-2i / H). A factor, `rope_scaling`, changes
that in one of three ways, `LlamaConfig.rope_type`:

- linear: positions are divided by the factor (Chen et al. 2023).
- llama3: low frequencies are divided by it, high ones are not, those between are interpolated
  (Llama 3.1; the formula is that of its public code).
- dynamic: above the original context the base grows with the length of the sequence ("NTK-aware"
  scaling, of which transformers' code is the reference).

Dynamic scaling depends on a length. While a prompt is read, and in training, it is the number of
tokens of the prompt or document. While tokens are decoded with a cache, it is the number of tokens
up to and including the new one; cached keys keep the rotation that they were written with, so that
logits differ from those of the same text read at once. Both are as in transformers. Unlike there,
sequences of a batch and packed documents do not lengthen one another, and what was read before a
prompt does not count.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from codellama_jax.models.layers import rope_angles, rope_frequencies
from codellama_jax.models.llama.config import LlamaConfig


def rope(
    config: LlamaConfig, positions_BT: jax.Array, lengths_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin of the RoPE angles, fp32 [B, T, 1, H / 2]: the same for all heads.

    Args:
      config: the model.
      positions_BT: positions, int32.
      lengths_BT: the length of the sequence or document of each token, [B, T] or [B, 1], which only
        dynamic scaling depends on.
    """
    c = config
    if c.rope_type == "linear":
        cos, sin = rope_angles(positions_BT, c.head_dim, c.rope_theta, c.rope_scaling)
        return cos[:, :, None], sin[:, :, None]
    if c.rope_type == "llama3":
        frequencies = jnp.asarray(llama3_frequencies(c))[None, None]
    else:
        frequencies = _dynamic_frequencies(c, lengths_BT)
    angles_BTH = positions_BT.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles_BTH)[:, :, None], jnp.sin(angles_BTH)[:, :, None]


def llama3_frequencies(config: LlamaConfig) -> np.ndarray:
    """Returns the frequencies of a model with llama3 scaling, fp32 [H / 2]."""
    c = config
    # In fp32 throughout, as the published code: one unit in the last place would be 1e-2 radians at
    # position 131,071.
    frequencies_H = rope_frequencies(c.head_dim, c.rope_theta)
    wavelengths_H = np.float32(2 * np.pi) / frequencies_H
    low, high = c.rope_low_factor, c.rope_high_factor
    # 0 for wavelengths of original / low and longer, 1 for those of original / high and shorter.
    share_H = (np.float32(c.rope_original_length) / wavelengths_H - low) / (high - low)
    share_H = np.clip(share_H, 0, 1).astype(np.float32)
    divided_H = frequencies_H / np.float32(c.rope_scaling)
    return (1 - share_H) * divided_H + share_H * frequencies_H


def _dynamic_frequencies(config: LlamaConfig, lengths_BT: jax.Array) -> jax.Array:
    """Returns the frequencies of sequences of these lengths, fp32 [B, T or 1, H / 2].

    The base is theta x (factor x length / original - factor + 1)^(H / (H - 2)) above the original
    length, so that the lowest frequency is divided by the term in parentheses.
    """
    c = config
    longer_BT = jnp.maximum(lengths_BT, c.rope_original_length) / c.rope_original_length
    stretch_BT = c.rope_scaling * longer_BT.astype(jnp.float32) - (c.rope_scaling - 1)
    exponents_H = np.arange(0, c.head_dim, 2, dtype=np.float32) / (c.head_dim - 2)
    frequencies_H = rope_frequencies(c.head_dim, c.rope_theta)
    divisors_BTH = stretch_BT[..., None] ** exponents_H[None, None]
    return jnp.asarray(frequencies_H)[None, None] / divisors_BTH


def document_lengths(positions_BT: jax.Array, segment_ids_BT: jax.Array | None) -> jax.Array:
    """Returns the length of the document that each token is in, [B, T].

    Positions grow within a document, and each document has one segment id; None means that each
    sequence is one document.
    """
    if segment_ids_BT is None:
        lengths_B1 = positions_BT.max(axis=1, keepdims=True) + 1
        return jnp.broadcast_to(lengths_B1, positions_BT.shape)
    _, T = positions_BT.shape
    # The last token of a document has another segment id after it. A running minimum from the right
    # brings its index to the tokens before it.
    next_BT = jnp.pad(segment_ids_BT[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    ends_BT = jnp.where(next_BT != segment_ids_BT, jnp.arange(T)[None], T - 1)
    ends_BT = jax.lax.cummin(ends_BT, axis=1, reverse=True)
    return jnp.take_along_axis(positions_BT, ends_BT, axis=1) + 1
