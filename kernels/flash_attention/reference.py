"""The tests' oracle: all scores at once, in the dtype of the inputs but at least in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import MASKED


def visible(q_positions_BT, kv_positions_BS, q_segments_BT=None, kv_segments_BS=None) -> jax.Array:
    """Returns bool mask_BTS, True where a query may read a key.

    Args:
      q_positions_BT, kv_positions_BS: int32 positions in the document.
      q_segments_BT, kv_segments_BS: int32 document numbers; None if each sequence is one document.
    """
    mask_BTS = q_positions_BT[:, :, None] >= kv_positions_BS[:, None, :]
    if q_segments_BT is not None:
        mask_BTS &= q_segments_BT[:, :, None] == kv_segments_BS[:, None, :]
    return mask_BTS


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    q_positions_BT,
    kv_positions_BS,
    q_segments_BT=None,
    kv_segments_BS=None,
    drop=None,
) -> jax.Array:
    """See `api.attention`. `drop` is a function of the attention weights_BKGTS, for dropout."""
    B, T, N, H = q_BTNH.shape
    # Query heads that share a key head are neighbours: N splits into K key heads and G = N / K.
    K = k_BSKH.shape[2]
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H).astype(dtype) * H**-0.5
    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH.astype(dtype))
    mask_BTS = visible(q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS)
    logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, MASKED)
    weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1)
    weights_BKGTS = drop(weights_BKGTS) if drop else weights_BKGTS
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH.astype(dtype))
    return out_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)
