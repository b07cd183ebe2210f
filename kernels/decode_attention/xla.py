"""Decoding attention for any backend: two products over the whole cache, which a CPU or GPU runs at memory speed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a masked score less a maximum is never NaN


def decode_attention(q_MGH, k_MSH, v_MSH, lengths_M, k_scale_MS=None, v_scale_MS=None) -> jax.Array:
    """See `api.decode_attention`. What stands in free slots must be finite."""
    dtype, scale = q_MGH.dtype, q_MGH.shape[-1] ** -0.5
    logits_MGS = (
        jnp.einsum("MGH,MSH->MGS", q_MGH, k_MSH.astype(dtype), preferred_element_type=jnp.float32)
        * scale
    )
    if k_scale_MS is not None:
        logits_MGS *= k_scale_MS[:, None]
    visible_MS = jnp.arange(k_MSH.shape[1])[None] < lengths_M[:, None]
    weights_MGS = jax.nn.softmax(jnp.where(visible_MS[:, None], logits_MGS, MASKED), axis=-1)
    if v_scale_MS is not None:
        weights_MGS *= v_scale_MS[:, None]
    return jnp.einsum("MGS,MSH->MGH", weights_MGS.astype(dtype), v_MSH.astype(dtype))
