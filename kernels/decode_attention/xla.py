"""Decoding attention for any backend: two matmuls over the full cache.

A CPU or GPU runs them at the speed of its memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import MASKED


def decode_attention(q_MGH, k_MSH, v_MSH, lengths_M) -> jax.Array:
    """See `api.decode_attention`. Free slots must hold finite values."""
    scale = q_MGH.shape[-1] ** -0.5
    logits_MGS = jnp.einsum("MGH,MSH->MGS", q_MGH, k_MSH, preferred_element_type=jnp.float32)
    visible_MS = jnp.arange(k_MSH.shape[1])[None] < lengths_M[:, None]
    logits_MGS = jnp.where(visible_MS[:, None], logits_MGS * scale, MASKED)
    weights_MGS = jax.nn.softmax(logits_MGS, axis=-1)
    return jnp.einsum("MGS,MSH->MGH", weights_MGS.astype(q_MGH.dtype), v_MSH)
