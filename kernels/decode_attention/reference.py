"""The oracle: all scores at once, in the precision of its inputs but never below fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def decode_attention(q_MGH, k_MSH, v_MSH, lengths_M, k_scale_MS=None, v_scale_MS=None) -> jax.Array:
    """See `api.decode_attention`."""
    dtype = jnp.promote_types(q_MGH.dtype, jnp.float32)
    scaled = lambda x_MSH, scale_MS: (
        x_MSH.astype(dtype) * (1 if scale_MS is None else scale_MS[..., None].astype(dtype))
    )
    logits_MGS = (
        jnp.einsum("MGH,MSH->MGS", q_MGH.astype(dtype), scaled(k_MSH, k_scale_MS))
        * q_MGH.shape[-1] ** -0.5
    )
    visible_M1S = (jnp.arange(k_MSH.shape[1])[None] < lengths_M[:, None])[:, None]
    weights_MGS = jax.nn.softmax(jnp.where(visible_M1S, logits_MGS, -jnp.inf), axis=-1)
    values_MSH = jnp.where(visible_M1S.swapaxes(1, 2), scaled(v_MSH, v_scale_MS), 0)
    return jnp.einsum("MGS,MSH->MGH", weights_MGS, values_MSH).astype(q_MGH.dtype)
