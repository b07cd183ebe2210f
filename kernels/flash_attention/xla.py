"""Attention for any backend: blocks of queries against the keys before them.

The full score matrix is never in memory. Short sequences unroll their blocks of queries. Longer
ones loop over square blocks (`blocked.py`), so that memory and compile time stay bounded.

Heads come before tokens (BKGTH), so that every matmul is one plain batched matmul. The weights are
divided by their sum after the matmul with the values, which divides H instead of S numbers per
query. On a CPU both together train three times faster than `reference.py`.

In training, keys and values are transposed once, to BKHS. The matmuls of their gradients then read
the scores as they are, and the queries transposed, which are small. From BKSH they would read the
scores transposed, which takes XLA's CPU backend up to five times as long. A call for a few queries,
as in decoding, reads the keys once and would lose more by transposing them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import MASKED
from kernels.flash_attention import blocked
from kernels.flash_attention.reference import visible
from kernels.fusion import materialized
from kernels.tpu import platform

BLOCK = 128  # queries per unrolled block


def longest_unrolled(dtype: jnp.dtype) -> int:
    """Returns the longest sequence, in tokens, whose blocks of queries are unrolled: at most 16."""
    if platform() != "cpu":
        return 2048
    # Fewer on a CPU, because the scores of a block then leave its caches, and square blocks are
    # faster. In bf16 they are so from shorter sequences on.
    return 256 if dtype == jnp.bfloat16 else 512


def _block(
    q_BKGTH: jax.Array, k: jax.Array, v: jax.Array, mask_BTS: jax.Array, layout: str
) -> jax.Array:
    """Returns out_BKGTH in q's dtype: the attention of T queries to all S keys under a mask.

    Args:
      q_BKGTH: queries.
      k, v: keys and values in `layout`.
      mask_BTS: which keys a query sees.
      layout: BKHS or BKSH.
    """
    B, K, G, T, H = q_BKGTH.shape
    # X flattens the query heads of a key head and the queries into the rows of one matmul.
    q_BKXH = q_BKGTH.reshape(B, K, G * T, H)
    logits_BKXS = jnp.einsum(f"BKXH,{layout}->BKXS", q_BKXH, k, preferred_element_type=jnp.float32)
    bias_BTS = jnp.where(mask_BTS, 0.0, MASKED)[:, None, None]
    logits_BKXS = (logits_BKXS.reshape(B, K, G, T, -1) + bias_BTS).reshape(B, K, G * T, -1)
    # The maximum cancels in the softmax and only prevents overflow, so it needs no gradient.
    highest_BKX1 = jax.lax.stop_gradient(logits_BKXS.max(axis=-1, keepdims=True))
    weights_BKXS = jnp.exp(logits_BKXS - highest_BKX1)
    out_BKXH = jnp.einsum(
        f"BKXS,{layout}->BKXH",
        weights_BKXS.astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    out_BKXH = out_BKXH / weights_BKXS.sum(axis=-1, keepdims=True)
    return out_BKXH.astype(q_BKGTH.dtype).reshape(B, K, G, T, H)


def attention(
    q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, q_segments_BT=None, kv_segments_BS=None
) -> jax.Array:
    """Computes `api.attention` with XLA.

    In sequences that are not unrolled (T = S), the order of the tokens and not the positions
    decides which keys are visible. Both agree, because positions rise by one inside a segment.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    if longest_unrolled(q_BTNH.dtype) < T == S:
        return blocked.attention(q_BTNH, k_BSKH, v_BSKH, q_segments_BT)
    q_BKGTH = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    layout = "BKHS" if T == S else "BKSH"
    k, v = (jnp.einsum(f"BSKH->{layout}", x_BSKH) for x_BSKH in (k_BSKH, v_BSKH))
    if T == S:
        # Their gradients are sums over the blocks, added up before they are transposed.
        q_BKGTH, k, v = materialized(q_BKGTH), materialized(k), materialized(v)
    parts = []
    for start in range(0, T, BLOCK):
        q = slice(start, min(start + BLOCK, T))
        # If queries and keys are the same tokens, keys after the block are masked for all of its
        # queries. Leaving them out halves the work.
        kv = slice(0, q.stop if T == S else S)
        segments: tuple[jax.Array, ...] = ()
        if q_segments_BT is not None:
            segments = (q_segments_BT[:, q], kv_segments_BS[:, kv])
        mask_BTS = visible(q_positions_BT[:, q], kv_positions_BS[:, kv], *segments)
        # All S keys where they are other tokens than the queries, as in a cache.
        seen_k, seen_v = (k[..., kv], v[..., kv]) if T == S else (k, v)
        parts.append(_block(q_BKGTH[:, :, :, q], seen_k, seen_v, mask_BTS, layout))
    return jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
