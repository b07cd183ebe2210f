"""Attention for any backend: blocks of queries against the keys before them, so that no whole score matrix is held."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.flash_attention.reference import visible

BLOCK = 512  # queries at once


def _block(q_BTNH, k_BSKH, v_BSKH, mask_BTS) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32) * H**-0.5
    logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH).reshape(B, T, N, H)


def attention(q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, q_segments_BT=None, kv_segments_BS=None) -> jax.Array:
    """See `api.attention`. Memory grows with BLOCK x S, not T x S."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    block = jax.checkpoint(_block) if T > BLOCK else _block
    rows = []
    for start in range(0, T, BLOCK):
        q = slice(start, min(start + BLOCK, T))
        kv = slice(0, q.stop if T == S else S)
        segments = () if q_segments_BT is None else (q_segments_BT[:, q], kv_segments_BS[:, kv])
        mask_BTS = visible(q_positions_BT[:, q], kv_positions_BS[:, kv], *segments)
        rows.append(block(q_BTNH[:, q], k_BSKH[:, kv], v_BSKH[:, kv], mask_BTS))
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)
