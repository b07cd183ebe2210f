"""Attention in square blocks of scores with an online softmax, for any backend.

Forward and backward hold one block of scores at a time, so their memory grows linearly with the
length of the row. Both are loops, so that the compiled program does not grow at all. Blocks: C
queries or C keys. X is the group of query heads and the queries of a block flattened together, so
that every matmul is one plain batched matmul.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kernels import MASKED
from kernels.flash_attention.pallas_tpu_forward import score_scale

SIZE = 128  # queries and keys per block: their scores stay in the L2 cache of a CPU core


def first_keys(segments_BT: jax.Array) -> jax.Array:
    """Returns int32 (B, T): where the run of equal segment ids that holds each token begins."""
    T = segments_BT.shape[1]
    changes_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    begins_BT = jnp.pad(changes_BT, ((0, 0), (1, 0)), constant_values=True)
    return jax.lax.cummax(jnp.where(begins_BT, jnp.arange(T, dtype=jnp.int32), 0), axis=1)


def padding(length: int) -> int:
    """Returns by how many tokens to pad rows of `length` tokens, so that blocks divide them."""
    return -length % _size(length)


def _size(length: int) -> int:
    return min(SIZE, length)


def _matmul(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _block(x: jax.Array, index: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _grouped(x_BNTH: jax.Array, heads: int) -> jax.Array:
    """Splits query heads into key heads and groups: x_BKGTH."""
    return x_BNTH.reshape(x_BNTH.shape[0], heads, -1, *x_BNTH.shape[2:])


def _flat(x_BKGCH: jax.Array) -> jax.Array:
    B, K, G, C, H = x_BKGCH.shape
    return x_BKGCH.reshape(B, K, G * C, H)


def _scores(q_BKXH, k_BKCH, first_BC, i, j) -> jax.Array:
    """Returns masked scores s_BKXC of query block i and key block j, in powers of two."""
    B, K, X, H = q_BKXH.shape
    C = k_BKCH.shape[2]
    query_C, key_C = i * C + jnp.arange(C), j * C + jnp.arange(C)
    causal_CC = key_C[None] <= query_C[:, None]
    visible_BCC = (key_C[None, None] >= first_BC[..., None]) & causal_CC[None]
    s_BKXC = _matmul("BKXH,BKCH->BKXC", q_BKXH, k_BKCH) * score_scale(H)
    s_BKGCC = s_BKXC.reshape(B, K, X // C, C, C)
    return jnp.where(visible_BCC[:, None, None], s_BKGCC, MASKED).reshape(s_BKXC.shape)


def _first_block(first_BC: jax.Array, i: jax.Array) -> jax.Array:
    """Returns the first key block that a query of block i sees; at most i, so one is always read."""
    return jnp.minimum(first_BC.min() // first_BC.shape[1], i)


def forward(q_BNTH, k_BKTH, v_BKTH, first_BT) -> tuple[jax.Array, jax.Array]:
    """Attends from query t to the keys first_BT[t] to t.

    Returns fp32 out_BNTH, and lse_BN1T: log2 of the sum of exponentials, in powers of two; very
    low where a query sees nothing. T is a multiple of the block size (see `padding`).
    """
    N, T = q_BNTH.shape[1:3]
    K, C = k_BKTH.shape[1], _size(T)
    q_BKGTH = _grouped(q_BNTH, K)

    def query_block(i):
        q_BKXH = _flat(_block(q_BKGTH, i, C, axis=3))
        first_BC = _block(first_BT, i, C, axis=1)

        def add_keys(j, state):
            # Online softmax: what was summed under a smaller maximum is scaled down to the new one.
            m_BKX1, l_BKX1, acc_BKXH = state
            s_BKXC = _scores(q_BKXH, _block(k_BKTH, j, C, axis=2), first_BC, i, j)
            new_BKX1 = jnp.maximum(m_BKX1, s_BKXC.max(axis=-1, keepdims=True))
            keep_BKX1, p_BKXC = jnp.exp2(m_BKX1 - new_BKX1), jnp.exp2(s_BKXC - new_BKX1)
            v_BKCH = _block(v_BKTH, j, C, axis=2)
            part_BKXH = _matmul("BKXC,BKCH->BKXH", p_BKXC.astype(v_BKCH.dtype), v_BKCH)
            l_BKX1 = l_BKX1 * keep_BKX1 + p_BKXC.sum(axis=-1, keepdims=True)
            return new_BKX1, l_BKX1, acc_BKXH * keep_BKX1 + part_BKXH

        column = (*q_BKXH.shape[:3], 1)
        zeros = jnp.zeros(column), jnp.zeros(q_BKXH.shape)
        start = (jnp.full(column, MASKED, jnp.float32), *zeros)
        m_BKX1, l_BKX1, acc_BKXH = jax.lax.fori_loop(
            _first_block(first_BC, i), i + 1, add_keys, start
        )
        return acc_BKXH / l_BKX1, m_BKX1 + jnp.log2(l_BKX1)

    out_nBKXH, lse_nBKX1 = jax.lax.map(query_block, jnp.arange(T // C))
    return _joined(out_nBKXH, N), _joined(lse_nBKX1, N).swapaxes(2, 3)


def _joined(x_nBKXH: jax.Array, heads: int) -> jax.Array:
    """Joins the blocks of queries to x_BNTH."""
    n, B, K, X, H = x_nBKXH.shape
    C = X * K // heads
    x_BKGnCH = jnp.moveaxis(x_nBKXH.reshape(n, B, K, X // C, C, H), 0, 3)
    return x_BKGnCH.reshape(B, heads, n * C, H)


def backward(q_BNTH, k_BKTH, v_BKTH, first_BT, lse_BN1T, delta_BN1T, do_BNTH):
    """Returns dq, dk, dv, fp32; computes the scores again from `lse_BN1T` over all keys."""
    N, T = q_BNTH.shape[1:3]
    K, C = k_BKTH.shape[1], _size(T)
    columns = (lse_BN1T.swapaxes(2, 3), delta_BN1T.swapaxes(2, 3))
    per_query = [_grouped(x, K) for x in (q_BNTH, do_BNTH, *columns)]
    scale = k_BKTH.shape[-1] ** -0.5

    def query_block(gradients, i):
        q_BKXH, do_BKXH, lse_BKX1, delta_BKX1 = (_flat(_block(x, i, C, axis=3)) for x in per_query)
        first_BC = _block(first_BT, i, C, axis=1)

        def add_keys(j, state):
            dq_BKXH, dk_BKTH, dv_BKTH = state
            k_BKCH, v_BKCH = _block(k_BKTH, j, C, axis=2), _block(v_BKTH, j, C, axis=2)
            p_BKXC = jnp.exp2(_scores(q_BKXH, k_BKCH, first_BC, i, j) - lse_BKX1)
            dp_BKXC = _matmul("BKXH,BKCH->BKXC", do_BKXH, v_BKCH)
            ds_BKXC = (p_BKXC * (dp_BKXC - delta_BKX1) * scale).astype(q_BKXH.dtype)
            dq_BKXH += _matmul("BKXC,BKCH->BKXH", ds_BKXC, k_BKCH)
            dk_BKCH = _matmul("BKXC,BKXH->BKCH", ds_BKXC, q_BKXH)
            dv_BKCH = _matmul("BKXC,BKXH->BKCH", p_BKXC.astype(do_BKXH.dtype), do_BKXH)
            return dq_BKXH, _add_block(dk_BKTH, dk_BKCH, j), _add_block(dv_BKTH, dv_BKCH, j)

        start = (jnp.zeros(q_BKXH.shape, jnp.float32), *gradients)
        dq_BKXH, *gradients = jax.lax.fori_loop(_first_block(first_BC, i), i + 1, add_keys, start)
        return tuple(gradients), dq_BKXH

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_BKTH, v_BKTH))
    (dk_BKTH, dv_BKTH), dq_nBKXH = jax.lax.scan(query_block, zeros, jnp.arange(T // C))
    return _joined(dq_nBKXH, N), dk_BKTH, dv_BKTH


def _add_block(total_BKTH: jax.Array, x_BKCH: jax.Array, j: jax.Array) -> jax.Array:
    C = x_BKCH.shape[2]
    added_BKCH = _block(total_BKTH, j, C, axis=2) + x_BKCH
    return jax.lax.dynamic_update_slice_in_dim(total_BKTH, added_BKCH, j * C, axis=2)


@jax.custom_vjp
def attend(q_BNTH, k_BKTH, v_BKTH, first_BT) -> jax.Array:
    """Returns out_BNTH in q's dtype, with gradients whose memory is linear too."""
    return _attend_forward(q_BNTH, k_BKTH, v_BKTH, first_BT)[0]


def _attend_forward(q_BNTH, k_BKTH, v_BKTH, first_BT):
    out_BNTH, lse_BN1T = forward(q_BNTH, k_BKTH, v_BKTH, first_BT)
    out_BNTH = out_BNTH.astype(q_BNTH.dtype)
    return out_BNTH, (q_BNTH, k_BKTH, v_BKTH, first_BT, out_BNTH, lse_BN1T)


def _attend_backward(residuals, do_BNTH):
    *inputs, first_BT, out_BNTH, lse_BN1T = residuals
    products_BNTH = out_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32)
    delta_BN1T = jnp.sum(products_BNTH, axis=-1)[:, :, None]
    gradients = backward(*inputs, first_BT, lse_BN1T, delta_BN1T, do_BNTH)
    cast = (gradient.astype(x.dtype) for gradient, x in zip(gradients, inputs))
    return *cast, np.zeros(first_BT.shape, jax.dtypes.float0)


attend.defvjp(_attend_forward, _attend_backward)


def attention(q_BTNH, k_BTKH, v_BTKH, segments_BT=None) -> jax.Array:
    """Returns out_BTNH of rows in order: a query sees its segment up to itself."""
    B, T = q_BTNH.shape[:2]
    pad = padding(T)
    segments_BT = jnp.zeros((B, T), jnp.int32) if segments_BT is None else segments_BT
    first_BT = jnp.pad(first_keys(segments_BT), ((0, 0), (0, pad)), mode="edge")
    heads_first = []
    for x_BTNH in (q_BTNH, k_BTKH, v_BTKH):
        x_BNTH = x_BTNH.swapaxes(1, 2)
        heads_first.append(jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, pad), (0, 0))))
    return attend(*heads_first, first_BT)[:, :, :T].swapaxes(1, 2)
