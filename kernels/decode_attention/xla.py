"""Attention in decoding for any backend: two matmuls over the full cache.

Reading the cache limits the speed, and a CPU or GPU reaches its memory bandwidth with these.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import MASKED


def decode_attention(q_MGH, k_MSH, v_MSH, lengths_M) -> jax.Array:
    """Returns out_MGH as `api.decode_attention` does; lengths_M is per key head.

    Free slots must hold finite values, because their weight of 0 does not remove NaN.
    """
    scale = q_MGH.shape[-1] ** -0.5
    logits_MGS = jnp.einsum("MGH,MSH->MGS", q_MGH, k_MSH, preferred_element_type=jnp.float32)
    # Slot s holds position s, so the filled slots are the first ones.
    visible_MS = jnp.arange(k_MSH.shape[1])[None] < lengths_M[:, None]
    logits_MGS = jnp.where(visible_MS[:, None], logits_MGS * scale, MASKED)
    weights_MGS = jax.nn.softmax(logits_MGS, axis=-1)
    return jnp.einsum("MGS,MSH->MGH", weights_MGS.astype(q_MGH.dtype), v_MSH)
