"""The forward pass: one block of queries against the keys before it, largest key first.

The diagonal block comes first and sets the running maximum, so nothing needs an initial value. Blocks that a document
boundary crosses follow with a mask, whole blocks without one. Shapes: B batch, N query heads, K key heads, T length,
H head dim; Q queries of a block, C keys at once.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import Refused
from kernels.flash_attention.block_sizes import BlockSizes, pieces
from kernels.tpu import LANES, MASKED, TRANSPOSED, matmul


def score_scale(head_dim: int) -> float:
    """Scores are kept in powers of two: exp2 costs the vector units one multiply less than exp."""
    return head_dim**-0.5 * math.log2(math.e)


def columns(x_RL, width: int):
    """Spreads a value that is the same in all lanes over `width` columns."""
    if width <= LANES:
        return x_RL[:, :width]
    return jnp.tile(x_RL, (1, width // LANES))


def as_column(x_1R):
    """Returns x_RL: a row turned into a column, the same in all lanes."""
    return jnp.concatenate(
        [jnp.broadcast_to(x_1R[:, p], (LANES, LANES)).T for p in pieces(x_1R.shape[1], LANES)]
    )


def as_row(x_RL):
    """Returns x_1R of a column that is the same in all lanes: the diagonal of each square, so that no transpose is needed."""
    square = (LANES, LANES)
    diagonal = lax.broadcasted_iota(jnp.int32, square, 0) == lax.broadcasted_iota(
        jnp.int32, square, 1
    )
    rows = [
        jnp.sum(jnp.where(diagonal, x_RL[p], 0.0), axis=0, keepdims=True)
        for p in pieces(x_RL.shape[0], LANES)
    ]
    return jnp.concatenate(rows, axis=1)


def _fold(operation, x_RC):
    return functools.reduce(operation, [x_RC[:, p] for p in pieces(x_RC.shape[1], LANES)])


def _update(scores, values, m_ref, l_ref, acc_ref, rows, first):
    """Adds key columns, a list of (R, C) scores with their values, to the running softmax of `rows`."""
    H = acc_ref.shape[1]
    m_RL = jnp.broadcast_to(
        functools.reduce(jnp.maximum, [jnp.max(s_RC, axis=1, keepdims=True) for s_RC in scores]),
        (scores[0].shape[0], LANES),
    )
    if not first:
        m_RL = jnp.maximum(m_ref[rows], m_RL)
        keep_RL = jnp.exp2(m_ref[rows] - m_RL)
    p_RC = [jnp.exp2(s_RC - columns(m_RL, s_RC.shape[1])) for s_RC in scores]
    l_RL = functools.reduce(jnp.add, [_fold(jnp.add, p) for p in p_RC])
    acc_RH = functools.reduce(jnp.add, [matmul(p.astype(v.dtype), v) for p, v in zip(p_RC, values)])
    m_ref[rows] = m_RL
    l_ref[rows] = l_RL if first else l_ref[rows] * keep_RL + l_RL
    acc_ref[rows] = acc_RH if first else acc_ref[rows] * columns(keep_RL, H) + acc_RH


def _columns(sizes: BlockSizes) -> int:
    """Returns how many keys at once keep as many scores alive as `sizes.columns` do beside one block."""
    return max(LANES, sizes.columns * sizes.block // sizes.queries)


def _diagonal(q_ref, k_ref, v_ref, start, first_1Q, state, *, sizes, scale):
    """Runs the block on the diagonal. `first_1Q`, when given, holds the first visible key of each query, from `start`."""
    Q = q_ref.shape[0]
    first_QL = None if first_1Q is None else as_column(first_1Q)
    for rows in pieces(Q, sizes.diagonal):
        q_RH, scores, values = q_ref[rows], [], []
        for keys in pieces(rows.start, _columns(sizes)) + [rows]:
            at = pl.ds(start + keys.start, keys.stop - keys.start)
            s_RC = matmul(q_RH, k_ref[at], TRANSPOSED) * scale
            key_RC = keys.start + lax.broadcasted_iota(jnp.int32, s_RC.shape, 1)
            if keys is rows:
                s_RC = jnp.where(
                    key_RC <= rows.start + lax.broadcasted_iota(jnp.int32, s_RC.shape, 0),
                    s_RC,
                    MASKED,
                )
            if first_QL is not None:
                s_RC = jnp.where(key_RC >= columns(first_QL[rows], s_RC.shape[1]), s_RC, MASKED)
            scores.append(s_RC)
            values.append(v_ref[at])
        _update(scores, values, *state, rows, first=True)


def _block(q_ref, k_ref, v_ref, start, first_1Q, state, *, sizes, scale):
    """Runs a block before the diagonal, with a mask when `first_1Q` is given (as in `_diagonal`)."""
    first_QL = None if first_1Q is None else as_column(first_1Q)
    for keys in pieces(sizes.block, _columns(sizes)):
        at = pl.ds(start + keys.start, keys.stop - keys.start)
        s_QC = matmul(q_ref[...], k_ref[at], TRANSPOSED) * scale
        if first_QL is not None:
            key_QC = keys.start + lax.broadcasted_iota(jnp.int32, s_QC.shape, 1)
            s_QC = jnp.where(key_QC >= columns(first_QL, s_QC.shape[1]), s_QC, MASKED)
        _update([s_QC], [v_ref[at]], *state, slice(None), first=False)


def _reciprocal(x, exact):
    """Returns 1 / x; else the hardware's estimate and one Newton step, far below bf16's rounding and a third of the work."""
    if exact:
        return 1.0 / x
    estimate = pl.reciprocal(x, approx=True)
    return estimate * (2.0 - x * estimate)


def _finish(m_ref, l_ref, acc_ref, out_ref, lse_ref):
    l_QL = jnp.broadcast_to(jnp.sum(l_ref[...], axis=1, keepdims=True), l_ref.shape)
    inverse_QL = _reciprocal(l_QL, exact=out_ref.dtype == jnp.float32)
    out_ref[...] = (acc_ref[...] * columns(inverse_QL, acc_ref.shape[1])).astype(out_ref.dtype)
    lse_ref[...] = as_row(m_ref[...]) + jnp.log(as_row(l_QL)) * math.log2(math.e)


def _kernel(
    first_key_ref,
    whole_key_ref,
    first_ref,
    q_ref,
    k_ref,
    v_ref,
    out_ref,
    lse_ref,
    m_ref,
    l_ref,
    acc_ref,
    *,
    sizes,
    scale,
):
    """One block of queries and one stretch of keys.

    first_key_ref, whole_key_ref: (B, T / Q) first key that any and that every query of a block may see.
    first_ref: (1, Q) first visible key of each query. The stretches of a block run from the diagonal backwards.
    """
    b, i, stretch = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    Q, C, length = q_ref.shape[0], sizes.block, k_ref.shape[0]
    state = m_ref, l_ref, acc_ref
    base = (lax.div(i * Q, length) - stretch) * (length // C)
    crossed = whole_key_ref[b, i] > i * Q

    def run(function, j, masked):
        first_1Q = first_ref[...] - j * C if masked else None
        function(
            q_ref,
            k_ref,
            v_ref,
            pl.multiple_of((j - base) * C, C),
            first_1Q,
            state,
            sizes=sizes,
            scale=scale,
        )

    diagonal = i * (Q // C)
    pl.when((stretch == 0) & crossed)(lambda: run(_diagonal, diagonal, True))
    pl.when((stretch == 0) & ~crossed)(lambda: run(_diagonal, diagonal, False))
    begin = jnp.maximum(lax.div(first_key_ref[b, i], C), base)
    end = jnp.where(base < 0, begin, jnp.minimum(diagonal, base + length // C))
    whole = jnp.clip(lax.div(whole_key_ref[b, i] + C - 1, C), begin, jnp.maximum(begin, end))
    lax.fori_loop(begin, whole, lambda j, _: run(_block, j, True), None)
    lax.fori_loop(whole, end, lambda j, _: run(_block, j, False), None)
    pl.when(stretch == pl.num_programs(3) - 1)(lambda: _finish(*state, out_ref, lse_ref))


def forward(q_BNTH, k_BKTH, v_BKTH, first_BT, *, sizes: BlockSizes, interpret=False):
    """Returns out_BNTH and lse_BN1T, the log2 of each query's sum of exponentials.

    Args:
      first_BT: int32, first key that each query may see; never falls along a row.
      sizes: `queries` and `keys` divide T.

    Raises:
      Refused: for a head dim that fills no whole number of vector registers.
    """
    B, N, T, H = q_BNTH.shape
    if H > LANES and H % LANES:
        raise Refused(
            f"pallas_tpu attention needs a head dim up to {LANES} or a multiple of it, got {H}; use implementation='xla'"
        )
    group = N // k_BKTH.shape[1]
    block, stretch = sizes.queries, sizes.keys
    first_key, whole_key = first_BT[:, ::block], first_BT[:, block - 1 :: block]

    def queries(b, n, i, s, *_):
        return b, n, i, 0

    def keys(b, n, i, s, first_key_ref, _):
        nearest = lax.div(i, stretch // block)
        return (
            b,
            lax.div(n, group),
            jnp.maximum(nearest - s, lax.div(first_key_ref[b, i], stretch)),
            0,
        )

    def row(b, n, i, s, *_):
        return b, 0, i

    q_spec = pl.BlockSpec((None, None, block, H), queries)
    kv_spec = pl.BlockSpec((None, None, stretch, H), keys)
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, scale=score_scale(H)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, N, T // block, T // stretch),
            in_specs=[pl.BlockSpec((None, 1, block), row), q_spec, kv_spec, kv_spec],
            out_specs=[
                q_spec,
                pl.BlockSpec((None, None, 1, block), lambda b, n, i, s, *_: (b, n, 0, i)),
            ],
            scratch_shapes=[pltpu.VMEM((block, width), jnp.float32) for width in (LANES, LANES, H)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype),
            jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="flash_attention_forward",
    )(first_key, whole_key, first_BT[:, None], q_BNTH, k_BKTH, v_BKTH)
