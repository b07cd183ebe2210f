"""Attention in square blocks of scores with an online softmax, for any backend.

The formulas are those of FlashAttention-2 (Dao 2023, arXiv:2307.08691), written in
`pallas_tpu_forward.py` and `pallas_tpu_backward.py`. Forward and backward pass hold one block of
scores at a time, so their memory grows linearly with the length of the sequence. Both are loops, so
the size of the compiled program does not depend on the length.

Shapes: a block has C queries or C keys; X = G C is the G query heads of a key head and the queries
of a block flattened together, so that every matmul is one plain batched matmul; n is the number of
blocks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kernels import MASKED
from kernels.flash_attention.pallas_tpu_forward import score_scale

SIZE = 128  # queries and keys per block; their scores stay in the L2 cache of a CPU core


def first_keys(segments_BT: jax.Array) -> jax.Array:
    """Returns int32 first_BT, the index at which the segment of each token begins.

    A segment is a run of equal ids in `segments_BT`.
    """
    T = segments_BT.shape[1]
    changes_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    begins_BT = jnp.pad(changes_BT, ((0, 0), (1, 0)), constant_values=True)
    # The largest beginning so far is that of the current segment.
    return jax.lax.cummax(jnp.where(begins_BT, jnp.arange(T, dtype=jnp.int32), 0), axis=1)


def padding(length: int) -> int:
    """Returns the number of tokens to add to `length` tokens, so that blocks divide them."""
    return -length % _size(length)


def _size(length: int) -> int:
    """Returns the number of queries and keys per block."""
    return min(SIZE, length)


def _matmul(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns an einsum of two arrays, accumulated in fp32."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _block(x: jax.Array, index: jax.Array, size: int, axis: int) -> jax.Array:
    """Returns block number `index` of `size` elements along an axis."""
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _grouped(x_BNTH: jax.Array, heads: int) -> jax.Array:
    """Returns x_BKGTH, the query heads split into key heads and the group that shares each."""
    return x_BNTH.reshape(x_BNTH.shape[0], heads, -1, *x_BNTH.shape[2:])


def _flat(x_BKGCH: jax.Array) -> jax.Array:
    """Returns x_BKXH, group and queries flattened together."""
    B, K, G, C, H = x_BKGCH.shape
    return x_BKGCH.reshape(B, K, G * C, H)


def _scores(
    q_BKXH: jax.Array, k_BKCH: jax.Array, first_BC: jax.Array, i: jax.Array, j: jax.Array
) -> jax.Array:
    """Returns masked fp32 scores s_BKXC, in powers of two.

    Args:
      q_BKXH, k_BKCH: a block of queries and a block of keys.
      first_BC: first visible key of each query, counted in the sequence.
      i, j: number of the query block and of the key block.
    """
    B, K, X, H = q_BKXH.shape
    C = k_BKCH.shape[2]
    query_C, key_C = i * C + jnp.arange(C), j * C + jnp.arange(C)
    # A query sees the keys up to itself, from the first one of its document on. Unlike on a TPU,
    # computing both masks for every block costs little beside the matmul.
    causal_CC = key_C[None] <= query_C[:, None]
    visible_BCC = (key_C[None, None] >= first_BC[..., None]) & causal_CC[None]
    s_BKXC = _matmul("BKXH,BKCH->BKXC", q_BKXH, k_BKCH) * score_scale(H)
    s_BKGCC = s_BKXC.reshape(B, K, X // C, C, C)
    return jnp.where(visible_BCC[:, None, None], s_BKGCC, MASKED).reshape(s_BKXC.shape)


def _first_block(first_BC: jax.Array, i: jax.Array) -> jax.Array:
    """Returns the number of the first key block that a query of block i sees.

    It is at most i: the loop over key blocks then has an iteration even for queries that see no
    key, as in ring attention, and their state is initialised.
    """
    return jnp.minimum(first_BC.min() // first_BC.shape[1], i)


def forward(
    q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, first_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attends from query t to the keys first_BT[t] to t.

    T must be a multiple of the block size (see `padding`).

    Returns:
      fp32 out_BNTH, and fp32 lse_BN1T: log2 of the sum of 2^score over the keys that a query sees.
      Where a query sees no key, lse is about MASKED, so that ring attention gives it no weight.
    """
    N, T = q_BNTH.shape[1:3]
    K, C = k_BKTH.shape[1], _size(T)
    q_BKGTH = _grouped(q_BNTH, K)

    # One iteration of the outer loop: a block of queries against all key blocks that it sees.
    def query_block(i):
        q_BKXH = _flat(_block(q_BKGTH, i, C, axis=3))
        first_BC = _block(first_BT, i, C, axis=1)

        def add_keys(j, state):
            # The online softmax. The sums so far are relative to the old maximum; `keep` rescales
            # them to the new one. They are fp32, because they run over all keys.
            m_BKX1, l_BKX1, acc_BKXH = state
            s_BKXC = _scores(q_BKXH, _block(k_BKTH, j, C, axis=2), first_BC, i, j)
            new_BKX1 = jnp.maximum(m_BKX1, s_BKXC.max(axis=-1, keepdims=True))
            keep_BKX1, p_BKXC = jnp.exp2(m_BKX1 - new_BKX1), jnp.exp2(s_BKXC - new_BKX1)
            v_BKCH = _block(v_BKTH, j, C, axis=2)
            # The weights are rounded to the dtype of the values, as a bf16 matmul needs; their sum
            # below is taken from the fp32 weights.
            part_BKXH = _matmul("BKXC,BKCH->BKXH", p_BKXC.astype(v_BKCH.dtype), v_BKCH)
            l_BKX1 = l_BKX1 * keep_BKX1 + p_BKXC.sum(axis=-1, keepdims=True)
            return new_BKX1, l_BKX1, acc_BKXH * keep_BKX1 + part_BKXH

        # Blocks before the first visible key and after the diagonal are never computed.
        column = (*q_BKXH.shape[:3], 1)
        zeros = jnp.zeros(column), jnp.zeros(q_BKXH.shape)
        start = (jnp.full(column, MASKED, jnp.float32), *zeros)
        m_BKX1, l_BKX1, acc_BKXH = jax.lax.fori_loop(
            _first_block(first_BC, i), i + 1, add_keys, start
        )
        # Dividing once per query block replaces dividing every weight.
        return acc_BKXH / l_BKX1, m_BKX1 + jnp.log2(l_BKX1)

    out_nBKXH, lse_nBKX1 = jax.lax.map(query_block, jnp.arange(T // C))
    return _joined(out_nBKXH, N), _joined(lse_nBKX1, N).swapaxes(2, 3)


def _joined(x_nBKXH: jax.Array, heads: int) -> jax.Array:
    """Returns x_BNTH, the blocks of queries joined along the length."""
    n, B, K, X, H = x_nBKXH.shape
    C = X * K // heads
    x_BKGnCH = jnp.moveaxis(x_nBKXH.reshape(n, B, K, X // C, C, H), 0, 3)
    return x_BKGnCH.reshape(B, heads, n * C, H)


def backward(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    first_BT: jax.Array,
    lse_BN1T: jax.Array,
    delta_BN1T: jax.Array,
    do_BNTH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns fp32 dq_BNTH, dk_BKTH and dv_BKTH; computes the scores again.

    Args:
      q_BNTH, k_BKTH, v_BKTH, first_BT: as in `forward`.
      lse_BN1T: as `forward` returns it; in ring attention over all keys of the sequence.
      delta_BN1T: fp32 sum of out * do over the head dim.
      do_BNTH: gradient of the output.
    """
    N, T = q_BNTH.shape[1:3]
    K, C = k_BKTH.shape[1], _size(T)
    columns = (lse_BN1T.swapaxes(2, 3), delta_BN1T.swapaxes(2, 3))
    per_query = [_grouped(x, K) for x in (q_BNTH, do_BNTH, *columns)]
    scale = k_BKTH.shape[-1] ** -0.5

    # dq is complete after the keys of its block; dk and dv are carried over all query blocks,
    # transposed, for the reason in `xla.py`.
    def query_block(gradients, i):
        q_BKXH, do_BKXH, lse_BKX1, delta_BKX1 = (_flat(_block(x, i, C, axis=3)) for x in per_query)
        first_BC = _block(first_BT, i, C, axis=1)

        def add_keys(j, state):
            dq_BKXH, dk_BKHT, dv_BKHT = state
            k_BKCH, v_BKCH = _block(k_BKTH, j, C, axis=2), _block(v_BKTH, j, C, axis=2)
            # P from the log-sum-exp, then dP = dO V^T and dS = P (dP - delta) / sqrt(H).
            p_BKXC = jnp.exp2(_scores(q_BKXH, k_BKCH, first_BC, i, j) - lse_BKX1)
            dp_BKXC = _matmul("BKXH,BKCH->BKXC", do_BKXH, v_BKCH)
            ds_BKXC = (p_BKXC * (dp_BKXC - delta_BKX1) * scale).astype(q_BKXH.dtype)
            # dQ = dS K, dK^T = Q^T dS and dV^T = dO^T P, accumulated in fp32.
            dq_BKXH += _matmul("BKXC,BKCH->BKXH", ds_BKXC, k_BKCH)
            dk_BKHC = _matmul("BKXH,BKXC->BKHC", q_BKXH, ds_BKXC)
            dv_BKHC = _matmul("BKXH,BKXC->BKHC", do_BKXH, p_BKXC.astype(do_BKXH.dtype))
            return dq_BKXH, _add_block(dk_BKHT, dk_BKHC, j), _add_block(dv_BKHT, dv_BKHC, j)

        start = (jnp.zeros(q_BKXH.shape, jnp.float32), *gradients)
        dq_BKXH, *gradients = jax.lax.fori_loop(_first_block(first_BC, i), i + 1, add_keys, start)
        return tuple(gradients), dq_BKXH

    zeros_BKHT = jnp.zeros(k_BKTH.swapaxes(2, 3).shape, jnp.float32)
    gradients_BKHT, dq_nBKXH = jax.lax.scan(
        query_block, (zeros_BKHT, zeros_BKHT), jnp.arange(T // C)
    )
    dk_BKTH, dv_BKTH = (gradient_BKHT.swapaxes(2, 3) for gradient_BKHT in gradients_BKHT)
    return _joined(dq_nBKXH, N), dk_BKTH, dv_BKTH


def _add_block(total_BKHT: jax.Array, x_BKHC: jax.Array, j: jax.Array) -> jax.Array:
    """Returns total_BKHT with x_BKHC added to its block j."""
    C = x_BKHC.shape[3]
    added_BKHC = _block(total_BKHT, j, C, axis=3) + x_BKHC
    return jax.lax.dynamic_update_slice_in_dim(total_BKHT, added_BKHC, j * C, axis=3)


@jax.custom_vjp
def attend(
    q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, first_BT: jax.Array
) -> jax.Array:
    """Returns `forward`'s out_BNTH in q's dtype.

    Its gradient is `backward`: differentiating the loop would keep the scores of all blocks.
    """
    return _attend_forward(q_BNTH, k_BKTH, v_BKTH, first_BT)[0]


def _attend_forward(q_BNTH, k_BKTH, v_BKTH, first_BT):
    out_BNTH, lse_BN1T = forward(q_BNTH, k_BKTH, v_BKTH, first_BT)
    out_BNTH = out_BNTH.astype(q_BNTH.dtype)
    return out_BNTH, (q_BNTH, k_BKTH, v_BKTH, first_BT, out_BNTH, lse_BN1T)


def _attend_backward(residuals, do_BNTH):
    *inputs, first_BT, out_BNTH, lse_BN1T = residuals
    out_do_BNTH = out_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32)
    delta_BN1T = jnp.sum(out_do_BNTH, axis=-1)[:, :, None]
    gradients = backward(*inputs, first_BT, lse_BN1T, delta_BN1T, do_BNTH)
    cast = (gradient.astype(x.dtype) for gradient, x in zip(gradients, inputs))
    return *cast, np.zeros(first_BT.shape, jax.dtypes.float0)


attend.defvjp(_attend_forward, _attend_backward)


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns out_BTNH in q's dtype; a query sees the tokens of its segment up to itself.

    `segments_BT` holds int32 document numbers; without it each sequence is one document.
    """
    B, T = q_BTNH.shape[:2]
    pad = padding(T)
    segments_BT = jnp.zeros((B, T), jnp.int32) if segments_BT is None else segments_BT
    first_BT = jnp.pad(first_keys(segments_BT), ((0, 0), (0, pad)), mode="edge")
    # The padding comes after all tokens, so no token sees it; its outputs are dropped.
    heads_first = []
    for x_BTNH in (q_BTNH, k_BTKH, v_BTKH):
        x_BNTH = x_BTNH.swapaxes(1, 2)
        heads_first.append(jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, pad), (0, 0))))
    return attend(*heads_first, first_BT)[:, :, :T].swapaxes(1, 2)
