"""Attention of several new queries per sequence to a cache, for any backend.

The scores of all queries and slots would not fit in memory for a long cache. So blocks of slots are
read one after the other with an online softmax (Dao 2023, arXiv:2307.08691), and blocks after the
last query's position are not read at all. It is not differentiated.

Shapes: those of `api.py`, and N = K R, the key heads of the R sequences that are read; T queries
per sequence; C slots per block; X = T G, the queries of a key head flattened together.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kernels import MASKED

BLOCK = 512  # slots per block
LEAST_BLOCK = 128  # a cache that only smaller blocks divide is read at once


def extend_attention(
    q_NTGH: jax.Array,
    k_MSH: jax.Array,
    v_MSH: jax.Array,
    positions_NT: jax.Array,
    *,
    rows_N: jax.Array | None = None,
    scales_MS: tuple[jax.Array, jax.Array] | None = None,
    is_split: bool = False,
) -> jax.Array:
    """Attends from each query to the slots up to its own position.

    out = softmax(q k^T / sqrt(H)) v over these slots; the softmax is fp32.

    Args:
      q_NTGH: queries.
      k_MSH, v_MSH: the cache, the queries' own keys and values included; finite in all slots.
      positions_NT: positions of the queries, int32, at least 0.
      rows_N: the rows of the cache that the queries attend to; None where N = M, in order.
      scales_MS: as in `api.decode_attention`.
      is_split: whether the mesh in use shards the slots. Then the cache is read at once, because
        every device would gather a block.

    Returns:
      out_NTGH in q's dtype.
    """
    N, T, G, H = q_NTGH.shape
    S = k_MSH.shape[1]
    C = S if is_split else _block_size(S)
    q_NXH = q_NTGH.reshape(N, T * G, H)

    def block(a_MS: jax.Array, start: jax.Array) -> jax.Array:
        if rows_N is None:
            return jax.lax.dynamic_slice_in_dim(a_MS, start, C, axis=1)

        def of_row(row: jax.Array) -> jax.Array:
            starts = [row, start] + [jnp.int32(0)] * (a_MS.ndim - 2)
            return jax.lax.dynamic_slice(a_MS, starts, (1, C, *a_MS.shape[2:]))[0]

        return jax.vmap(of_row)(rows_N)

    def matmul(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
        # An int8 cache is converted; its scales are applied to the scores and to the weights.
        return jnp.einsum(equation, x, y.astype(x.dtype), preferred_element_type=jnp.float32)

    def add_block(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Adds the slots of one block to the weighted values and the softmax's denominator."""
        highest_NX1, total_NX1, out_NXH = sums
        start = index * C
        scores_NXC = matmul("NXH,NCH->NXC", q_NXH, block(k_MSH, start)) * H**-0.5
        if scales_MS:
            scores_NXC *= block(scales_MS[0], start)[:, None]
        is_visible_NTC = (start + jnp.arange(C))[None, None] <= positions_NT[:, :, None]
        is_visible_NXC = jnp.repeat(is_visible_NTC, G, axis=1)
        scores_NXC = jnp.where(is_visible_NXC, scores_NXC, MASKED)
        raised_NX1 = jnp.maximum(highest_NX1, scores_NXC.max(-1, keepdims=True))
        # The first block holds a visible slot for every query, so that masked scores become 0.
        weights_NXC = jnp.exp(scores_NXC - raised_NX1)
        kept_NX1 = jnp.exp(highest_NX1 - raised_NX1)
        total_NX1 = total_NX1 * kept_NX1 + weights_NXC.sum(-1, keepdims=True)
        if scales_MS:
            weights_NXC *= block(scales_MS[1], start)[:, None]
        values_NCH = block(v_MSH, start)
        weighted_NXH = matmul("NXC,NCH->NXH", weights_NXC.astype(q_NXH.dtype), values_NCH)
        return raised_NX1, total_NX1, out_NXH * kept_NX1 + weighted_NXH

    zeros_NX1 = jnp.zeros((N, T * G, 1), jnp.float32)
    start_sums = zeros_NX1 + MASKED, zeros_NX1, jnp.zeros(q_NXH.shape, jnp.float32)
    blocks = jnp.minimum(jnp.max(positions_NT) // C + 1, S // C)
    _, total_NX1, out_NXH = jax.lax.fori_loop(0, blocks, add_block, start_sums)
    return (out_NXH / total_NX1).astype(q_NTGH.dtype).reshape(N, T, G, H)


def _block_size(length: int) -> int:
    """Returns the slots per block, which divide the length of the cache."""
    size = math.gcd(length, BLOCK)
    return length if length <= BLOCK or size < LEAST_BLOCK else size
