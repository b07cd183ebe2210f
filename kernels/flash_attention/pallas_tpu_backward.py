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
The VMEM that this takes bounds the length (`block_sizes.backward_bytes`).

The scores are recomputed transposed, keys down and queries across: the values per query (lse,
delta, first key) are then rows, which broadcast over the keys for free.

Shapes: as in `pallas_tpu_forward.py`; G query heads share a key head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import MASKED, UnsupportedError
from kernels.flash_attention.block_sizes import BlockSizes, backward_bytes, pieces
from kernels.flash_attention.pallas_tpu_forward import score_scale
from kernels.tpu import CONTRACT_ROWS, TRANSPOSED, matmul


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


def _block(refs, accumulators, i, j, *, masked, diagonal, sizes, scale):
    """Adds the gradients of query block i and key block j to the accumulators.

    Args:
      refs: the seven inputs of `_kernel`.
      accumulators: fp32 dq, dk and dv of a full head, in VMEM.
      i, j: numbers of the query block and the key block.
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
            first_1R = first_ref[:, query_rows] - j * block
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


def _kernel(full_end_ref, end_ref, *refs, sizes, scale, score):
    """Processes one key block for one query head.

    Args:
      full_end_ref: (B, key blocks) int32 in SMEM, query block after the last one of which every
        query sees all of these keys.
      end_ref: the same shape, query block after the last one of which any query sees any of them.
      refs: the inputs first (1, T), q (T, H), k and v (block, H), do (T, H), lse and delta (1, T);
        the outputs dq, dk and dv (block, H); the accumulators of the same three (T, H), in VMEM.
      sizes: block sizes.
      scale: 1 / sqrt(head dim), which dq and dk still lack.
      score: the score scale of the forward pass.
    """
    inputs, (dq_out, dk_out, dv_out), accumulators = refs[:7], refs[7:10], refs[10:]
    dq_ref, dk_ref, dv_ref = accumulators
    b, g, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    block = dk_out.shape[0]
    key_rows = pl.ds(pl.multiple_of(j * block, block), block)
    run = functools.partial(_block, inputs, accumulators, sizes=sizes, scale=score)

    # Step 1: clear the accumulators. dq belongs to one query head and is cleared with its first key
    # block. dk and dv sum over the G query heads that share this key head, so each key block clears
    # its own rows with the first of these heads.
    @pl.when(j == 0)
    def _():
        dq_ref[...] = jnp.zeros_like(dq_ref)

    @pl.when(g == 0)
    def _():
        dk_ref[key_rows] = jnp.zeros_like(dk_out, jnp.float32)
        dv_ref[key_rows] = jnp.zeros_like(dv_out, jnp.float32)

    # Step 2: three ranges of query blocks. The diagonal block needs the causal mask. In the next
    # ones every query sees every key, so they need no mask. In the last ones the document of some
    # query starts inside the key block, so they need the document mask. Later queries see no key.
    def full_block(i, _):
        run(i, j, masked=False, diagonal=False)

    def boundary_block(i, _):
        run(i, j, masked=True, diagonal=False)

    run(j, j, masked=True, diagonal=True)
    full_end = full_end_ref[b, j]
    lax.fori_loop(j + 1, full_end, full_block, None)
    lax.fori_loop(jnp.maximum(j + 1, full_end), end_ref[b, j], boundary_block, None)

    # Step 3: write the gradients that are complete. Query block j sees no key after its own block,
    # so its dq is complete now. dk and dv are complete after the last query head of the group.
    dq_out[...] = (dq_ref[key_rows] * scale).astype(dq_out.dtype)

    @pl.when(g == pl.num_programs(2) - 1)
    def _():
        dk_out[...] = (dk_ref[key_rows] * scale).astype(dk_out.dtype)
        dv_out[...] = dv_ref[key_rows].astype(dv_out.dtype)


def _check_memory(length: int, head_dim: int, sizes: BlockSizes) -> None:
    """Raises UnsupportedError if VMEM does not hold the gradients of `length` tokens."""
    needed = backward_bytes(length, head_dim, sizes.block)
    if needed > sizes.vmem_bytes:
        raise UnsupportedError(
            f"the gradients of {length} tokens per head take {needed >> 20} MiB of VMEM, the chip"
            f" has {sizes.vmem_bytes >> 20}: shard the sequence over more devices of the context"
            " axis or use implementation='xla'"
        )


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
      first_BT, lse_BN1T, sizes: as `pallas_tpu_forward.forward` takes and returns them. In ring
        attention lse_BN1T covers all keys of the sequence, not only k_BKTH.
      delta_BN1T: fp32 sum of out * do over the head dim.
      do_BNTH: gradient of the output.
      interpret: as `pl.pallas_call` takes it.

    Raises:
      UnsupportedError: if VMEM does not hold the gradients of T tokens.
    """
    B, N, T, H = q_BNTH.shape
    if not interpret:
        _check_memory(T, H, sizes)
    K = k_BKTH.shape[1]
    block = sizes.block
    G, blocks = N // K, T // block
    full_end, end = _visible_ends(first_BT, block)

    def full_head(b, k, g, j, *_):
        return b, k * G + g, 0, 0

    def query_block(b, k, g, j, *_):
        return b, k * G + g, j, 0

    def key_block(b, k, g, j, *_):
        return b, k, j, 0

    def written_key_block(b, k, g, j, *_):
        # Pallas copies an output block to HBM when its index changes. dk and dv are complete only
        # with the last query head: until then the index stays, so that nothing is copied.
        return b, k, jnp.where(g == G - 1, j, 0), 0

    def full_sequence(b, k, g, j, *_):
        return b, 0, 0

    q_spec = pl.BlockSpec((None, None, T, H), full_head)
    kv_spec = pl.BlockSpec((None, None, block, H), key_block)
    row_spec = pl.BlockSpec((None, None, 1, T), full_head)
    first_spec = pl.BlockSpec((None, 1, T), full_sequence)
    dq_spec = pl.BlockSpec((None, None, block, H), query_block)
    dkv_spec = pl.BlockSpec((None, None, block, H), written_key_block)
    out_shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BNTH, k_BKTH, v_BKTH)]
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, scale=H**-0.5, score=score_scale(H)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, G, blocks),
            in_specs=[first_spec, q_spec, kv_spec, kv_spec, q_spec, row_spec, row_spec],
            out_specs=[dq_spec, dkv_spec, dkv_spec],
            scratch_shapes=[pltpu.VMEM((T, H), jnp.float32)] * 3,
        ),
        out_shape=out_shapes,
        compiler_params=pltpu.CompilerParams(
            # Query heads and key blocks share accumulators, so one core runs them in order. Batch
            # and key heads are independent: a chip with two cores may split them.
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="flash_attention_backward",
    )(full_end, end, first_BT[:, None], q_BNTH, k_BKTH, v_BKTH, do_BNTH, lse_BN1T, delta_BN1T)
