"""The forward pass: one block of queries against the keys before it, from the diagonal backwards.

The grid is (batch, query head, query block, group of key blocks). A group of `sizes.keys` keys and
values is in VMEM at a time. The diagonal block runs first and initialises the running maximum, so
the online softmax needs no other initial value. Blocks that a document boundary crosses run with a
mask; blocks that every query sees completely run without one; blocks before the first visible key
are never visited.

Shapes: B batch, N query heads, K key heads, T length, H head dim; Q queries of a block, C keys at
once, R rows, L the 128 lanes of a register.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import MASKED, UnsupportedError
from kernels.flash_attention.block_sizes import BlockSizes, pieces
from kernels.tpu import LANES, TRANSPOSED, broadcast_lanes, matmul, sum_lane_groups


def score_scale(head_dim: int) -> float:
    """Returns the factor of q @ k that gives scores in powers of two.

    exp2 costs the vector units one multiplication less than exp.
    """
    return head_dim**-0.5 * math.log2(math.e)


def as_column(x_1R):
    """Returns x_RL, a row turned into a column that is equal in all lanes."""
    squares = []
    for piece in pieces(x_1R.shape[1], LANES):
        squares.append(jnp.broadcast_to(x_1R[:, piece], (LANES, LANES)).T)
    return jnp.concatenate(squares)


def as_row(x_RL):
    """Returns x_1R from a column that is equal in all lanes.

    It reads the diagonal of each 128 x 128 square, which needs no transpose.
    """
    square = (LANES, LANES)
    row_index = lax.broadcasted_iota(jnp.int32, square, 0)
    diagonal = row_index == lax.broadcasted_iota(jnp.int32, square, 1)
    rows = []
    for piece in pieces(x_RL.shape[0], LANES):
        rows.append(jnp.sum(jnp.where(diagonal, x_RL[piece], 0.0), axis=0, keepdims=True))
    return jnp.concatenate(rows, axis=1)


def _update(scores, values, state, rows, first):
    """Adds key columns to the running softmax of `rows`.

    Args:
      scores, values: lists of (R, C) scores and (C, H) values of the same keys.
      state: references to the maximum m_RL, the sum l_RL and the accumulator acc_RH.
      rows: slice of the query block.
      first: True for the first keys of these rows, which overwrite the state.
    """
    m_ref, l_ref, acc_ref = state
    H = acc_ref.shape[1]
    # The new maximum of every row, over these scores and the state.
    maxima = [jnp.max(s_RC, axis=1, keepdims=True) for s_RC in scores]
    m_R1 = functools.reduce(jnp.maximum, maxima)
    m_RL = jnp.broadcast_to(m_R1, (scores[0].shape[0], LANES))
    if not first:
        m_RL = jnp.maximum(m_ref[rows], m_RL)
        # Old sums were relative to the old maximum: rescale them to the new one.
        rescale_RL = jnp.exp2(m_ref[rows] - m_RL)
    p_RC = [jnp.exp2(s_RC - broadcast_lanes(m_RL, s_RC.shape[1])) for s_RC in scores]
    # Each lane keeps its own partial sum; `_finish` adds the lanes once per block of queries.
    l_RL = functools.reduce(jnp.add, [sum_lane_groups(p) for p in p_RC])
    products = [matmul(p.astype(v.dtype), v) for p, v in zip(p_RC, values)]
    acc_RH = functools.reduce(jnp.add, products)
    m_ref[rows] = m_RL
    if first:
        l_ref[rows] = l_RL
        acc_ref[rows] = acc_RH
    else:
        l_ref[rows] = l_ref[rows] * rescale_RL + l_RL
        acc_ref[rows] = acc_ref[rows] * broadcast_lanes(rescale_RL, H) + acc_RH


def _keys_at_once(sizes: BlockSizes) -> int:
    """Returns how many keys keep as many scores live as `sizes.columns` keys of one block do."""
    return max(LANES, sizes.columns * sizes.block // sizes.queries)


def _diagonal(q_ref, k_ref, v_ref, start, first_1Q, state, *, sizes, scale):
    """Processes the block on the diagonal, a strip of `sizes.diagonal` queries at a time.

    Args:
      q_ref, k_ref, v_ref: the query block, and the keys and values in VMEM.
      start: index of the block's first key in `k_ref`.
      first_1Q: first visible key of each query, counted from `start`; None where no document
        boundary is in the block.
      state: as in `_update`.
      sizes, scale: block sizes and score scale.
    """
    Q = q_ref.shape[0]
    first_QL = None if first_1Q is None else as_column(first_1Q)
    for rows in pieces(Q, sizes.diagonal):
        q_RH, scores, values = q_ref[rows], [], []
        # A strip sees the keys before it, and itself up to the diagonal.
        for keys in [*pieces(rows.start, _keys_at_once(sizes)), rows]:
            in_vmem = pl.ds(start + keys.start, keys.stop - keys.start)
            s_RC = matmul(q_RH, k_ref[in_vmem], TRANSPOSED) * scale
            key_RC = keys.start + lax.broadcasted_iota(jnp.int32, s_RC.shape, 1)
            if keys is rows:
                # Only the last keys can be after a query: the causal mask is needed just here.
                query_RC = rows.start + lax.broadcasted_iota(jnp.int32, s_RC.shape, 0)
                s_RC = jnp.where(key_RC <= query_RC, s_RC, MASKED)
            if first_QL is not None:
                first_RC = broadcast_lanes(first_QL[rows], s_RC.shape[1])
                s_RC = jnp.where(key_RC >= first_RC, s_RC, MASKED)
            scores.append(s_RC)
            values.append(v_ref[in_vmem])
        _update(scores, values, state, rows, first=True)


def _block(q_ref, k_ref, v_ref, start, first_1Q, state, *, sizes, scale):
    """Processes a block before the diagonal; arguments as in `_diagonal`.

    Every key is before every query, so there is no causal mask.
    """
    first_QL = None if first_1Q is None else as_column(first_1Q)
    for keys in pieces(sizes.block, _keys_at_once(sizes)):
        in_vmem = pl.ds(start + keys.start, keys.stop - keys.start)
        s_QC = matmul(q_ref[...], k_ref[in_vmem], TRANSPOSED) * scale
        if first_QL is not None:
            key_QC = keys.start + lax.broadcasted_iota(jnp.int32, s_QC.shape, 1)
            first_QC = broadcast_lanes(first_QL, s_QC.shape[1])
            s_QC = jnp.where(key_QC >= first_QC, s_QC, MASKED)
        _update([s_QC], [v_ref[in_vmem]], state, slice(None), first=False)


def _reciprocal(x, exact):
    """Returns 1 / x.

    Unless `exact`, it is the hardware's estimate and one Newton step: the error is far below the
    rounding of bf16, at a third of the work.
    """
    if exact:
        return 1.0 / x
    estimate = pl.reciprocal(x, approx=True)
    return estimate * (2.0 - x * estimate)


def _finish(state, out_ref, lse_ref):
    """Divides the accumulator by the sum of exponentials and writes the outputs."""
    m_ref, l_ref, acc_ref = state
    l_QL = jnp.broadcast_to(jnp.sum(l_ref[...], axis=1, keepdims=True), l_ref.shape)
    inverse_QL = _reciprocal(l_QL, exact=out_ref.dtype == jnp.float32)
    out_QH = acc_ref[...] * broadcast_lanes(inverse_QL, acc_ref.shape[1])
    out_ref[...] = out_QH.astype(out_ref.dtype)
    lse_ref[...] = as_row(m_ref[...]) + jnp.log(as_row(l_QL)) * math.log2(math.e)


def _kernel(first_key_ref, whole_key_ref, first_ref, q_ref, k_ref, v_ref, *refs, sizes, scale):
    """Processes one query block and one group of key blocks.

    Args:
      first_key_ref, whole_key_ref: (B, query blocks) int32 in SMEM: the first key that any, and
        that every, query of a block may see.
      first_ref: (1, Q) first visible key of each query.
      q_ref, k_ref, v_ref: (Q, H) queries; (keys, H) keys and values of the group.
      refs: out_ref (Q, H) and lse_ref (1, Q), then the scratch of `_update`'s state.
      sizes, scale: block sizes and score scale.
    """
    out_ref, lse_ref, *state = refs
    # Group 0 is the one that holds the diagonal; later grid steps go backwards from it.
    b, i, group = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    Q, C, length = q_ref.shape[0], sizes.block, k_ref.shape[0]
    # Index of the first key block in VMEM. It is negative for groups before the sequence.
    base = (lax.div(i * Q, length) - group) * (length // C)
    boundary_in_diagonal = whole_key_ref[b, i] > i * Q

    def process(function, j, masked):
        """Runs `_diagonal` or `_block` on key block j."""
        first_1Q = first_ref[...] - j * C if masked else None
        start = pl.multiple_of((j - base) * C, C)
        function(q_ref, k_ref, v_ref, start, first_1Q, state, sizes=sizes, scale=scale)

    # Step 1: the diagonal block, with the document mask only if a boundary is inside it.
    diagonal = i * (Q // C)

    @pl.when((group == 0) & boundary_in_diagonal)
    def _():
        process(_diagonal, diagonal, True)

    @pl.when((group == 0) & ~boundary_in_diagonal)
    def _():
        process(_diagonal, diagonal, False)

    # Step 2: the key blocks of this group from the first visible key up to the diagonal. Those up
    # to `whole` hold a boundary for some query; from there on every query sees every key.
    begin = jnp.maximum(lax.div(first_key_ref[b, i], C), base)
    end = jnp.where(base < 0, begin, jnp.minimum(diagonal, base + length // C))
    first_whole_block = lax.div(whole_key_ref[b, i] + C - 1, C)
    whole = jnp.clip(first_whole_block, begin, jnp.maximum(begin, end))
    lax.fori_loop(begin, whole, lambda j, _: process(_block, j, True), None)
    lax.fori_loop(whole, end, lambda j, _: process(_block, j, False), None)

    # Step 3: after the last group the outputs are complete.
    @pl.when(group == pl.num_programs(3) - 1)
    def _():
        _finish(state, out_ref, lse_ref)


def forward(q_BNTH, k_BKTH, v_BKTH, first_BT, *, sizes: BlockSizes, interpret=False):
    """Returns out_BNTH, and lse_BN1T: the log2 of each query's sum of exponentials.

    Args:
      q_BNTH, k_BKTH, v_BKTH: heads before the length, all of one dtype.
      first_BT: int32, first key that each query may see; it never falls along a sequence.
      sizes: block sizes; `queries` and `keys` divide T.
      interpret: `pallas_call`'s.

    Raises:
      UnsupportedError: for a head dim that does not fill whole vector registers.
    """
    B, N, T, H = q_BNTH.shape
    if H > LANES and H % LANES:
        raise UnsupportedError(
            f"pallas_tpu attention needs a head dim up to {LANES} or a multiple of it, got {H};"
            " use implementation='xla'"
        )
    heads_per_key = N // k_BKTH.shape[1]
    block, group_keys = sizes.queries, sizes.keys
    # first_BT never falls, so a block's first query has its smallest and its last its largest.
    first_key, whole_key = first_BT[:, ::block], first_BT[:, block - 1 :: block]

    def queries(b, n, i, g, *_):
        return b, n, i, 0

    def keys(b, n, i, g, first_key_ref, _):
        # A group before the first visible key repeats the index of the last useful one: Pallas
        # does not fetch the same block twice.
        diagonal_group = lax.div(i, group_keys // block)
        first_group = lax.div(first_key_ref[b, i], group_keys)
        return b, lax.div(n, heads_per_key), jnp.maximum(diagonal_group - g, first_group), 0

    def first_keys_of_block(b, n, i, g, *_):
        return b, 0, i

    def lse(b, n, i, g, *_):
        return b, n, 0, i

    q_spec = pl.BlockSpec((None, None, block, H), queries)
    kv_spec = pl.BlockSpec((None, None, group_keys, H), keys)
    first_spec = pl.BlockSpec((None, 1, block), first_keys_of_block)
    out_shapes = [
        jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype),
        jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32),
    ]
    state = [pltpu.VMEM((block, width), jnp.float32) for width in (LANES, LANES, H)]
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, scale=score_scale(H)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, N, T // block, T // group_keys),
            in_specs=[first_spec, q_spec, kv_spec, kv_spec],
            out_specs=[q_spec, pl.BlockSpec((None, None, 1, block), lse)],
            scratch_shapes=state,
        ),
        out_shape=out_shapes,
        compiler_params=pltpu.CompilerParams(
            # Query blocks and groups carry the state, so a core runs them in order.
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="flash_attention_forward",
    )(first_key, whole_key, first_BT[:, None], q_BNTH, k_BKTH, v_BKTH)
