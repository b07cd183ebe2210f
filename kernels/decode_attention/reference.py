"""The tests' oracle: all scores at once, in the dtype of the inputs but at least in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import MASKED


def decode_attention(q_MGH, k_MSH, v_MSH, lengths_M, *scales_MS) -> jax.Array:
    """Returns out_MGH as `api.decode_attention` does; lengths_M is per key head."""
    dtype = jnp.promote_types(q_MGH.dtype, jnp.float32)
    if scales_MS:
        k_MSH, v_MSH = (
            a_MSH.astype(dtype) * scale_MS.astype(dtype)[:, :, None]
            for a_MSH, scale_MS in zip((k_MSH, v_MSH), scales_MS)
        )
    scale = q_MGH.shape[-1] ** -0.5
    logits_MGS = jnp.einsum("MGH,MSH->MGS", q_MGH.astype(dtype), k_MSH.astype(dtype)) * scale
    visible_M1S = (jnp.arange(k_MSH.shape[1])[None] < lengths_M[:, None])[:, None]
    weights_MGS = jax.nn.softmax(jnp.where(visible_M1S, logits_MGS, MASKED), axis=-1)
    # A free slot may hold NaN, and 0 x NaN is NaN: its value is set to 0, besides its weight.
    values_MSH = jnp.where(visible_M1S.swapaxes(1, 2), v_MSH.astype(dtype), 0)
    return jnp.einsum("MGS,MSH->MGH", weights_MGS, values_MSH).astype(q_MGH.dtype)
