"""The forward pass: one block of queries against the keys before it, from the diagonal backwards.

It computes the online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) in the order of
FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithm 1). For each block of keys, with scores in
powers of two:

    S = Q K^T log2(e) / sqrt(H)       m' = max(m, row maximum of S)       P = 2^(S - m')
    l' = l 2^(m - m') + row sum of P                  acc' = acc 2^(m - m') + P V

After the last block, out = acc / l and lse = m + log2(l), which the backward pass reads.

The grid is (batch, query head, query block, group of key blocks); the last index moves fastest. A
grid step has one block of `sizes.queries` queries in VMEM and a group of `sizes.keys` keys and
values, several key blocks, so that one grid step has enough work to hide the fetch of the next
group. m, l and acc stay in VMEM scratch from one group to the next. The first group holds the
diagonal and later groups go backwards from it: the diagonal block then initialises m, so that the
online softmax needs no other initial value.

A query sees the keys from the first token of its document up to itself. Blocks that a document
boundary crosses run with a mask. Blocks that every query sees completely run without one, which
saves the comparison and the selection per score. Blocks before the first visible key are skipped.

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
    """Returns log2(e) / sqrt(head_dim), the factor that turns q @ k into powers of two.

    e^x = 2^(x log2 e). The vector units have an instruction for 2^x only, so exp would multiply
    every score by log2(e) again. Here the factor is part of the scale and costs nothing.
    """
    return head_dim**-0.5 * math.log2(math.e)


def as_column(x_1R: jax.Array) -> jax.Array:
    """Returns x_RL, a row turned into a column that is equal in all lanes."""
    # Transposing a square whose rows are all equal gives a column that is already broadcast.
    squares = []
    for piece in pieces(x_1R.shape[1], LANES):
        squares.append(jnp.broadcast_to(x_1R[:, piece], (LANES, LANES)).T)
    return jnp.concatenate(squares)


def as_row(x_RL: jax.Array) -> jax.Array:
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
      scores, values: lists of fp32 (R, C) scores and (C, H) values of the same keys.
      state: references to the maximum m_RL, the sum l_RL and the accumulator acc_RH. They are
        fp32: the sums run over up to 100,000 keys, and bf16 keeps only 8 bits of a sum.
      rows: slice of the query block.
      first: True for the first keys of these rows, which overwrite the state.
    """
    m_ref, l_ref, acc_ref = state
    H = acc_ref.shape[1]
    # The new maximum of every row, m' = max(m, row maximum of S). Reducing over lanes is slow, so
    # its result is broadcast once to all lanes and stays in that form.
    maxima = [jnp.max(s_RC, axis=1, keepdims=True) for s_RC in scores]
    m_R1 = functools.reduce(jnp.maximum, maxima)
    m_RL = jnp.broadcast_to(m_R1, (scores[0].shape[0], LANES))
    if not first:
        m_RL = jnp.maximum(m_ref[rows], m_RL)
        # The old sums are relative to the old maximum: 2^(m - m') rescales them to the new one.
        rescale_RL = jnp.exp2(m_ref[rows] - m_RL)
    p_RC = [jnp.exp2(s_RC - broadcast_lanes(m_RL, s_RC.shape[1])) for s_RC in scores]
    # Each lane keeps a separate partial sum; `_finish` adds the lanes once per block of queries.
    l_RL = functools.reduce(jnp.add, [sum_lane_groups(p) for p in p_RC])
    # P is between 0 and 1, so rounding it to bf16 costs 2^-9 of a weight and makes the matmul with
    # V one pass of the matrix units.
    weighted = [matmul(p.astype(v.dtype), v) for p, v in zip(p_RC, values)]
    acc_RH = functools.reduce(jnp.add, weighted)
    m_ref[rows] = m_RL
    if first:
        l_ref[rows] = l_RL
        acc_ref[rows] = acc_RH
    else:
        l_ref[rows] = l_ref[rows] * rescale_RL + l_RL
        acc_ref[rows] = acc_ref[rows] * broadcast_lanes(rescale_RL, H) + acc_RH


def _keys_at_once(sizes: BlockSizes) -> int:
    """Returns how many keys to process at once.

    A wider query block takes fewer keys at once, so that the number of scores that are live, and
    with it the number of spilled registers, stays that of `sizes.columns` keys and one block.
    """
    return max(LANES, sizes.columns * sizes.block // sizes.queries)


def _diagonal(q_ref, k_ref, v_ref, start, first_1Q, state, *, sizes, scale):
    """Processes the block on the diagonal, a strip of `sizes.diagonal` queries at a time.

    Strips skip most of the masked scores above the diagonal, which a single block would compute.

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
                # The earlier keys of this block are before every query of the strip. Only the
                # strip's own keys can be after a query and need the causal mask.
                query_RC = rows.start + lax.broadcasted_iota(jnp.int32, s_RC.shape, 0)
                s_RC = jnp.where(key_RC <= query_RC, s_RC, MASKED)
            if first_QL is not None:
                # Keys of an earlier document.
                first_RC = broadcast_lanes(first_QL[rows], s_RC.shape[1])
                s_RC = jnp.where(key_RC >= first_RC, s_RC, MASKED)
            scores.append(s_RC)
            values.append(v_ref[in_vmem])
        _update(scores, values, state, rows, first=True)


def _block(q_ref, k_ref, v_ref, start, first_1Q, state, *, sizes, scale):
    """Processes a block before the diagonal, with the arguments of `_diagonal`.

    Every key of such a block is before every query, so it needs no causal mask.
    """
    # (1, Q) lane-major positions become a column, because queries are the rows of the scores.
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
    """Returns 1 / x, exact or with an error far below the rounding of bf16.

    Unless `exact`, it is the hardware's estimate and one Newton step, y' = y (2 - x y), which
    doubles the number of correct bits and takes a third of the instructions of a division.
    """
    if exact:
        return 1.0 / x
    estimate = pl.reciprocal(x, approx=True)
    return estimate * (2.0 - x * estimate)


def _finish(state, out_ref, lse_ref):
    """Writes out = acc / l and lse = m + log2(l) to the output blocks."""
    m_ref, l_ref, acc_ref = state
    # The only sum over lanes of the pass: it completes the partial sums of `_update`.
    l_QL = jnp.broadcast_to(jnp.sum(l_ref[...], axis=1, keepdims=True), l_ref.shape)
    inverse_QL = _reciprocal(l_QL, exact=out_ref.dtype == jnp.float32)
    out_QH = acc_ref[...] * broadcast_lanes(inverse_QL, acc_ref.shape[1])
    out_ref[...] = out_QH.astype(out_ref.dtype)
    # A row of T values takes 1/128 of the memory of a column, which HBM would pad to 128 lanes.
    lse_ref[...] = as_row(m_ref[...]) + jnp.log(as_row(l_QL)) * math.log2(math.e)


def _kernel(first_key_ref, full_key_ref, first_ref, q_ref, k_ref, v_ref, *refs, sizes, scale):
    """Processes one query block and one group of key blocks.

    Args:
      first_key_ref: (B, query blocks) int32 in SMEM, first key that any query of a block may see.
      full_key_ref: the same shape, first key that every query of a block may see.
      first_ref: (1, Q) first visible key of each query.
      q_ref, k_ref, v_ref: (Q, H) queries; (keys, H) keys and values of the group.
      refs: out_ref (Q, H) and lse_ref (1, Q), then the scratch of `_update`'s state.
      sizes, scale: block sizes and score scale.
    """
    out_ref, lse_ref, *state = refs
    # Group 0 is the group of keys that holds the diagonal; later grid steps go backwards from it.
    b, i, group = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    Q, C, length = q_ref.shape[0], sizes.block, k_ref.shape[0]
    # Number of the first key block in VMEM. It is negative for groups before the sequence: the
    # grid has as many groups as the last query block needs, and the first blocks need fewer.
    base = (lax.div(i * Q, length) - group) * (length // C)
    # If the last query of the block starts its document inside the block, a boundary is inside it.
    boundary_in_diagonal = full_key_ref[b, i] > i * Q

    def process(function, j, masked):
        """Runs `_diagonal` or `_block` on key block j, a block of the group in VMEM."""
        first_1Q = first_ref[...] - j * C if masked else None
        start = pl.multiple_of((j - base) * C, C)
        function(q_ref, k_ref, v_ref, start, first_1Q, state, sizes=sizes, scale=scale)

    # Step 1: the diagonal block, with the document mask only if a boundary is inside it. It is in
    # the first group and overwrites the state that the last query block left in the scratch.
    diagonal = i * (Q // C)

    @pl.when((group == 0) & boundary_in_diagonal)
    def _():
        process(_diagonal, diagonal, True)

    @pl.when((group == 0) & ~boundary_in_diagonal)
    def _():
        process(_diagonal, diagonal, False)

    # Step 2: the key blocks of this group from the first visible key up to the diagonal. In the
    # blocks from `begin` to `full`, some query does not see some key: its document starts later.
    # From `full` on every query sees every key, and no mask is computed. A group before the first
    # visible key has no block: begin = end.
    begin = jnp.maximum(lax.div(first_key_ref[b, i], C), base)
    end = jnp.where(base < 0, begin, jnp.minimum(diagonal, base + length // C))
    first_full_block = lax.div(full_key_ref[b, i] + C - 1, C)
    full = jnp.clip(first_full_block, begin, jnp.maximum(begin, end))
    lax.fori_loop(begin, full, lambda j, _: process(_block, j, True), None)
    lax.fori_loop(full, end, lambda j, _: process(_block, j, False), None)

    # Step 3: after the last group every key has been added, and the outputs are written. Their
    # block index does not depend on the group, so Pallas copies them to HBM only once, after this.
    @pl.when(group == pl.num_programs(3) - 1)
    def _():
        _finish(state, out_ref, lse_ref)


def forward(q_BNTH, k_BKTH, v_BKTH, first_BT, *, sizes: BlockSizes, interpret=False):
    """Returns out_BNTH in q's dtype, and fp32 lse_BN1T.

    The log-sum-exp is log2 of each query's sum of 2^score, over the keys that the query sees.

    Args:
      q_BNTH, k_BKTH, v_BKTH: heads before the length, all of one dtype.
      first_BT: int32, first key that each query may see. It never falls along a sequence, because
        a later document starts later.
      sizes: block sizes; `queries` and `keys` divide T.
      interpret: as `pl.pallas_call` takes it.

    Raises:
      UnsupportedError: for a head dim over 128 that is not a multiple of 128.
    """
    B, N, T, H = q_BNTH.shape
    if H > LANES and H % LANES:
        raise UnsupportedError(
            f"pallas_tpu attention needs a head dim up to {LANES} or a multiple of it, got {H};"
            " use implementation='xla'"
        )
    heads_per_key = N // k_BKTH.shape[1]
    block, group_keys = sizes.queries, sizes.keys
    # first_BT never falls: the first query of a block has its smallest value, the last its largest.
    first_key, full_key = first_BT[:, ::block], first_BT[:, block - 1 :: block]

    def queries(b, n, i, g, *_):
        return b, n, i, 0

    def keys(b, n, i, g, first_key_ref, _):
        # The groups go backwards from the diagonal. A group before the first visible key repeats
        # the index of the last useful group: Pallas does not fetch the same block twice, so a group
        # that computes nothing costs no memory traffic either.
        diagonal_group = lax.div(i, group_keys // block)
        first_group = lax.div(first_key_ref[b, i], group_keys)
        # Query heads that share a key head are neighbours.
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
    # The running maximum, the sum and the accumulator. They are carried between the grid steps of
    # one query block.
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
            # The groups of a query block carry the state, so one core runs them in order. Batch and
            # heads are independent: a chip with two cores may split them.
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="flash_attention_forward",
    )(first_key, full_key, first_BT[:, None], q_BNTH, k_BKTH, v_BKTH)
