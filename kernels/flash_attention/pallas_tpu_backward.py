"""The backward pass, all three gradients at once: one block of keys against the queries after it.

It computes FlashAttention-2's backward pass (Dao 2023, arXiv:2307.08691, algorithm 2). With the
log-sum-exp of the forward pass, in powers of two, and delta = the sum of out * dout over the head
dim:

    P = 2^(S - lse)           dV = P^T dO          dP = dO V^T
    dS = P (dP - delta)       dQ = dS K / sqrt(H)  dK = dS^T Q / sqrt(H)

The grid is (batch, key head, query head of its group, key block); the last index moves fastest. A
grid step has one block of keys and values in VMEM, and the queries, dO, lse and delta of a full
head, so that the inner loop over query blocks fetches nothing. dQ sums over key blocks, and dK and
dV over query blocks and over the query heads that share a key head. All three sums stay in fp32
scratch for a full head until they are complete, so that no partial gradient goes to HBM and back.

A sequence whose gradients do not fit the VMEM (`block_sizes.choose`) is processed in segments, and
the grid is (batch, key head, pair of segments, query head, key block). "A full head" above is then
the query segment and the key segment of a pair. Pairs whose queries are before their keys are left
out. The key segments rise, and the query segments rise for each of them:

- dK and dV of a key segment sum over neighbouring pairs and stay in scratch.
- dQ of a query segment sums over pairs that are not neighbours. After each of them it goes to HBM,
  in fp32, and comes back for the next one.
- The pair of a segment with itself is the first one of its keys and the last one of its queries. It
  is processed as a sequence of one segment is.

The scores are recomputed transposed, keys down and queries across: the values per query (lse,
delta, first key) are then rows, which broadcast over the keys for free.

Shapes: as in `pallas_tpu_forward.py`; G query heads share a key head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import MASKED, UnsupportedError
from kernels.flash_attention.block_sizes import BlockSizes, backward_bytes, pieces
from kernels.flash_attention.pallas_tpu_forward import score_scale
from kernels.tpu import CONTRACT_ROWS, TRANSPOSED, ceil_div, matmul


def _gradients(q_RH, do_RH, k_CH, v_CH, lse_1R, delta_1R, visible_CR, scale):
    """Returns fp32 dq_RH, dk_CH and dv_CH of R queries and C keys.

    dq and dk lack the factor 1 / sqrt(H), which is applied once to the complete sums.

    Args:
      q_RH, do_RH: queries and the gradient of their outputs.
      k_CH, v_CH: keys and values.
      lse_1R: log-sum-exp of each query, in powers of two.
      delta_1R: sum of out * do over the head dim, of each query.
      visible_CR: the mask; None where every query sees every key.
      scale: the score scale.
    """
    # Step a: the scores again, S^T = K Q^T. Recomputing them is cheaper than reading T x T scores.
    s_CR = matmul(k_CH, q_RH, TRANSPOSED) * scale
    if visible_CR is not None:
        s_CR = jnp.where(visible_CR, s_CR, MASKED)
    # Step b: the softmax, already normalised by the log-sum-exp of the forward pass.
    p_CR = jnp.exp2(s_CR - lse_1R)
    # Step c: dV = P^T dO. p is rounded to bf16 for the matrix units; the sum is fp32.
    dv_CH = matmul(p_CR.astype(do_RH.dtype), do_RH)
    # Step d: the gradient of the softmax. delta is the mean of dP under P, which the normalisation
    # of the softmax subtracts.
    dp_CR = matmul(v_CH, do_RH, TRANSPOSED)
    ds_CR = (p_CR * (dp_CR - delta_1R)).astype(q_RH.dtype)
    # Step e: dQ = dS K and dK = dS^T Q. The matrix units contract ds's rows without a transpose.
    return matmul(ds_CR, k_CH, CONTRACT_ROWS), matmul(ds_CR, q_RH), dv_CH


def _visible(keys, queries, first_1R, causal):
    """Returns bool visible_CR for a slice of keys and a slice of queries.

    Args:
      keys, queries: slices that count from the first key of the key block.
      first_1R: first visible key of each query, in the same count.
      causal: whether a key may be after a query.
    """
    shape = (keys.stop - keys.start, queries.stop - queries.start)
    key_CR = keys.start + lax.broadcasted_iota(jnp.int32, shape, 0)
    visible_CR = key_CR >= first_1R
    if causal:
        query_CR = queries.start + lax.broadcasted_iota(jnp.int32, shape, 1)
        visible_CR &= key_CR <= query_CR
    return visible_CR


def _block(refs, accumulators, i, j, *, start, masked, diagonal, sizes, scale):
    """Adds the gradients of query block i and key block j to the accumulators.

    Args:
      refs: the seven inputs of `_kernel`.
      accumulators: fp32 dq, dk and dv of a segment, in VMEM.
      i, j: numbers of the query block and the key block, counted in their segments.
      start: position of the key block in the sequence.
      masked: whether a document boundary or the diagonal crosses the pair. Otherwise every query
        sees every key and the mask is skipped.
      diagonal: whether i and j are the same block.
      sizes, scale: block sizes and score scale.
    """
    first_ref, q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref = refs
    dq_ref, dk_ref, dv_ref = accumulators
    block = k_ref.shape[0]
    for queries in pieces(block, sizes.diagonal if diagonal else sizes.columns):
        # On the diagonal a strip of queries sees the keys up to its end; later keys are skipped.
        keys = slice(0, queries.stop) if diagonal else slice(0, block)
        query_rows = pl.ds(
            pl.multiple_of(i * block, block) + queries.start, queries.stop - queries.start
        )
        key_rows = pl.ds(pl.multiple_of(j * block, block), keys.stop)
        visible_CR = None
        if masked:
            # Positions of first_ref count in the sequence, those of the slices in the key block.
            first_1R = first_ref[:, query_rows] - start
            visible_CR = _visible(keys, queries, first_1R, diagonal)
        dq_RH, dk_CH, dv_CH = _gradients(
            q_ref[query_rows],
            do_ref[query_rows],
            k_ref[keys],
            v_ref[keys],
            lse_ref[:, query_rows],
            delta_ref[:, query_rows],
            visible_CR,
            scale,
        )
        # The accumulators are fp32: up to T / block gradients are added to each element.
        dq_ref[query_rows] += dq_RH
        dk_ref[key_rows] += dk_CH
        dv_ref[key_rows] += dv_CH


def _position(indices, pairs_ref):
    """Returns b, k, g, j, and the numbers of the query segment and the key segment of a grid step.

    Args:
      indices: index of each axis of the grid.
      pairs_ref: `_pairs` in SMEM, in a sequence that is empty if there is one segment.
    """
    if not pairs_ref:
        return *indices, 0, 0
    b, k, pair, g, j = indices
    return b, k, g, j, pairs_ref[0][0, pair], pairs_ref[0][1, pair]


def _sees(end_ref, b, query_block, key_block):
    """Returns whether the query block or a later one sees the key block; False for block -1."""
    return (key_block >= 0) & (end_ref[b, jnp.maximum(key_block, 0)] > query_block)


def _visit_later_queries(run, j, begin, full_end, end):
    """Runs the query blocks from `begin` on that see key block j, except the one on the diagonal.

    In the blocks before `full_end` every query sees every key, so they need no mask. In those
    before `end` the document of some query starts inside the key block, so they need the document
    mask. Later queries see no key.

    Args:
      run: `_block` without the query block and how to mask it.
      j: number of the key block in its segment.
      begin, full_end, end: numbers of query blocks in their segment.
    """

    def full_block(i, _):
        run(i, j, masked=False, diagonal=False)

    def boundary_block(i, _):
        run(i, j, masked=True, diagonal=False)

    lax.fori_loop(begin, full_end, full_block, None)
    lax.fori_loop(jnp.maximum(begin, full_end), end, boundary_block, None)


def _kernel(*refs, segments, sizes, scale, score):
    """Processes one key block for one query head, with the queries of one segment.

    Args:
      refs: in SMEM, full_end and end of `_visible_ends` and, with several segments, `_pairs`. The
        inputs first (1, L), q (L, H), k and v (block, H), do (L, H), lse and delta (1, L), for
        segments of L tokens. The outputs dq, dk and dv (block, H) and, with several segments, the
        partial dq (B, N, T, H), fp32 in HBM. The accumulators of dq, dk and dv (L, H), in VMEM.
      segments: number of segments of the sequence.
      sizes: block sizes.
      scale: 1 / sqrt(head dim), which dq and dk still lack.
      score: the score scale of the forward pass.
    """
    is_split = segments > 1
    full_end_ref, end_ref, *pairs_ref = refs[: 2 + is_split]
    inputs, accumulators = refs[2 + is_split : 9 + is_split], refs[-3:]
    dq_out, dk_out, dv_out, *partial_ref = refs[9 + is_split : -3]
    dq_ref, dk_ref, dv_ref = accumulators
    indices = [pl.program_id(axis) for axis in range(4 + is_split)]
    b, k, g, j, query_segment, key_segment = _position(indices, pairs_ref)
    is_diagonal = query_segment == key_segment
    G, block, L = pl.num_programs(2 + is_split), dk_out.shape[0], dk_ref.shape[0]
    key_rows = pl.ds(pl.multiple_of(j * block, block), block)
    # j counts in the segment, these numbers of blocks count in the sequence.
    blocks = L // block
    first_query, first_key = query_segment * blocks, key_segment * blocks

    # Step 1: clear the accumulators. dq belongs to one query head and is cleared with its first key
    # block. dk and dv sum over the G query heads that share this key head, and over the query
    # segments, so each key block clears its own rows with the first of these.
    _clear(dq_ref, pl.ds(0, L), j == 0)
    for accumulator_ref in (dk_ref, dv_ref):
        _clear(accumulator_ref, key_rows, (g == 0) & is_diagonal)

    # Step 2: with several segments, fetch dq summed over the earlier key segments. It was not
    # written if these queries do not see the last key before this segment.
    if is_split:
        partial_dq = partial_ref[0].at[b, k * G + g, pl.ds(query_segment * L, L)]

        @pl.when((j == 0) & _sees(end_ref, b, first_query, first_key - 1))
        def _():
            pltpu.sync_copy(partial_dq, dq_ref)

    # Step 3: add the gradients of this key block and each query block that sees it. The diagonal
    # block needs the causal mask. With queries of a later segment there is no diagonal block.
    start = (first_key + j) * block
    run = functools.partial(_block, inputs, accumulators, start=start, sizes=sizes, scale=score)

    @pl.when(is_diagonal)
    def _():
        run(j, j, masked=True, diagonal=True)

    begin, ends = j + 1, [ref[b, first_key + j] for ref in (full_end_ref, end_ref)]
    if is_split:
        begin = jnp.where(is_diagonal, begin, 0)
        ends = [jnp.minimum(end - first_query, blocks) for end in ends]
    _visit_later_queries(run, j, begin, *ends)

    # Step 4: write the gradients that are complete. Query block j sees no key after its own block,
    # so its dq is complete now. dk and dv are complete after the last query head of the group and
    # the last query segment.
    @pl.when(is_diagonal)
    def _():
        dq_out[...] = (dq_ref[key_rows] * scale).astype(dq_out.dtype)

    @pl.when((g == G - 1) & (query_segment == segments - 1))
    def _():
        dk_out[...] = (dk_ref[key_rows] * scale).astype(dk_out.dtype)
        dv_out[...] = dv_ref[key_rows].astype(dv_out.dtype)

    # Step 5: with several segments, keep dq for the next key segment, unless this one is the last
    # or adds nothing.
    if is_split:
        is_incomplete = (j == blocks - 1) & ~is_diagonal

        @pl.when(is_incomplete & _sees(end_ref, b, first_query, first_key + blocks - 1))
        def _():
            pltpu.sync_copy(dq_ref, partial_dq)


def _clear(accumulator_ref, rows, is_first):
    """Sets rows of an accumulator to 0 if nothing was added to them yet."""

    @pl.when(is_first)
    def _():
        accumulator_ref[rows] = jnp.zeros((rows.size, accumulator_ref.shape[1]), jnp.float32)


def _check_memory(head_dim: int, itemsize: int, length: int, sizes: BlockSizes) -> None:
    """Raises UnsupportedError if VMEM does not hold the gradients of a `length`-token segment."""
    needed = backward_bytes(length, head_dim, itemsize, sizes.block)
    if needed > sizes.vmem_bytes:
        raise UnsupportedError(
            f"the gradients of {length} tokens of head dim {head_dim} take {needed >> 20} MiB of"
            f" VMEM, the chip has {sizes.vmem_bytes >> 20}: use implementation='xla'"
        )


def _pairs(segments: int) -> np.ndarray:
    """Returns int32 (2, pairs), the query segment and the key segment of each pair in order."""
    pairs = []
    for key_segment in range(segments):
        for query_segment in range(key_segment, segments):
            pairs.append((query_segment, key_segment))
    return np.array(pairs, np.int32).T


def _visible_ends(first_BT, block: int):
    """Returns full_end and end of `_kernel`, both int32 (B, key blocks)."""
    T = first_BT.shape[1]
    starts = jnp.arange(0, T, block)[None, :, None]
    # first_BT never falls: a query block's first query has its smallest first key, its last query
    # the largest. So the query blocks that see a key block are the first ones, and counting them
    # gives the number of the block after the last one.
    first_key, full_key = first_BT[:, None, ::block], first_BT[:, None, block - 1 :: block]
    full_end = jnp.sum(full_key <= starts, axis=2, dtype=jnp.int32)
    end = jnp.sum(first_key < starts + block, axis=2, dtype=jnp.int32)
    return full_end, end


def _specs(heads_per_key: int, head_dim: int, length: int, block: int, segments: int):
    """Returns the block specs of the inputs and of the outputs of `_kernel`.

    Args:
      heads_per_key: query heads that share a key head.
      head_dim: elements of a head.
      length: tokens of a segment.
      block: queries, and keys, of a block.
      segments: number of segments of the sequence.
    """
    G, H, blocks = heads_per_key, head_dim, length // block
    is_split = segments > 1

    def position(indices):
        # After the indices of the grid come full_end, end and, with several segments, the pairs.
        return _position(indices[: 4 + is_split], indices[6 + is_split :])

    def queries(*indices):
        b, k, g, _, query_segment, _ = position(indices)
        return b, k * G + g, query_segment, 0

    def row_of_queries(*indices):
        b, k, g, _, query_segment, _ = position(indices)
        return b, k * G + g, 0, query_segment

    def first_keys(*indices):
        b, *_, query_segment, _ = position(indices)
        return b, 0, query_segment

    def key_block(*indices):
        b, k, _, j, _, key_segment = position(indices)
        return b, k, key_segment * blocks + j, 0

    # Pallas copies an output block to HBM when its index changes. While a gradient is incomplete
    # the index stays, so that nothing is copied.
    def written_query_block(*indices):
        # dq is complete on the diagonal. In later pairs the index stays at the last block of that.
        b, k, g, j, query_segment, key_segment = position(indices)
        if is_split:
            is_diagonal = query_segment == key_segment
            g, j = jnp.where(is_diagonal, g, G - 1), jnp.where(is_diagonal, j, blocks - 1)
        return b, k * G + g, key_segment * blocks + j, 0

    def written_key_block(*indices):
        # dk and dv are complete only with the last query head and the last query segment.
        b, k, g, j, query_segment, key_segment = position(indices)
        is_complete = (g == G - 1) & (query_segment == segments - 1)
        return b, k, key_segment * blocks + jnp.where(is_complete, j, 0), 0

    q_spec = pl.BlockSpec((None, None, length, H), queries)
    kv_spec = pl.BlockSpec((None, None, block, H), key_block)
    row_spec = pl.BlockSpec((None, None, 1, length), row_of_queries)
    first_spec = pl.BlockSpec((None, 1, length), first_keys)
    dq_spec = pl.BlockSpec((None, None, block, H), written_query_block)
    dkv_spec = pl.BlockSpec((None, None, block, H), written_key_block)
    out_specs = [dq_spec, dkv_spec, dkv_spec]
    if is_split:
        # The partial dq stays in HBM, and the kernel copies its segments itself.
        out_specs.append(pl.BlockSpec(memory_space=pl.ANY))
    return [first_spec, q_spec, kv_spec, kv_spec, q_spec, row_spec, row_spec], out_specs


def backward(
    q_BNTH,
    k_BKTH,
    v_BKTH,
    first_BT,
    lse_BN1T,
    delta_BN1T,
    do_BNTH,
    *,
    sizes: BlockSizes,
    interpret=False,
):
    """Returns dq_BNTH, dk_BKTH and dv_BKTH in the dtype of the inputs.

    Args:
      q_BNTH, k_BKTH, v_BKTH: heads before the length, all of one dtype.
      first_BT, lse_BN1T, sizes: as `pallas_tpu_forward.forward` takes and returns them;
        `sizes.segment` divides T if T is longer. In ring attention lse_BN1T covers all keys of the
        sequence, not only k_BKTH.
      delta_BN1T: fp32 sum of out * do over the head dim.
      do_BNTH: gradient of the output.
      interpret: as `pl.pallas_call` takes it.

    Raises:
      UnsupportedError: if VMEM does not hold the gradients of a segment.
    """
    B, N, T, H = q_BNTH.shape
    K, block = k_BKTH.shape[1], sizes.block
    segments = ceil_div(T, sizes.segment)
    length = T // segments
    if not interpret:
        _check_memory(H, q_BNTH.dtype.itemsize, length, sizes)
    scalars, grid = [*_visible_ends(first_BT, block)], [B, K, N // K, length // block]
    out_shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BNTH, k_BKTH, v_BKTH)]
    if segments > 1:
        pairs = _pairs(segments)
        scalars.append(jnp.asarray(pairs))
        grid.insert(2, pairs.shape[1])
        out_shapes.append(jax.ShapeDtypeStruct(q_BNTH.shape, jnp.float32))
    in_specs, out_specs = _specs(N // K, H, length, block, segments)
    scales = {"scale": H**-0.5, "score": score_scale(H)}
    gradients = pl.pallas_call(
        functools.partial(_kernel, segments=segments, sizes=sizes, **scales),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=tuple(grid),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM((length, H), jnp.float32)] * 3,
        ),
        out_shape=out_shapes,
        compiler_params=pltpu.CompilerParams(
            # Pairs, query heads and key blocks share accumulators, so one core runs them in order.
            # Batch and key heads are independent: a chip with two cores may split them.
            dimension_semantics=(pltpu.PARALLEL,) * 2 + (pltpu.ARBITRARY,) * (len(grid) - 2),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="flash_attention_backward",
    )(*scalars, first_BT[:, None], q_BNTH, k_BKTH, v_BKTH, do_BNTH, lse_BN1T, delta_BN1T)
    return gradients[:3]
