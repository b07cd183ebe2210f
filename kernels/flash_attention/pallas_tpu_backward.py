"""The backward pass, all three gradients at once: one block of keys against the queries after it.

Scores are recomputed transposed (keys down, queries across), so that what is known per query is a row and spreads over
keys at no cost. The gradients of a whole head accumulate in vector memory in fp32. Shapes: as in `pallas_tpu_forward.py`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import Refused
from kernels.flash_attention.block_sizes import BlockSizes, backward_bytes, pieces
from kernels.flash_attention.pallas_tpu_forward import score_scale
from kernels.tpu import CONTRACT_ROWS, MASKED, TRANSPOSED, matmul


def _gradients(q_RH, do_RH, k_CH, v_CH, lse_1R, delta_1R, visible_CR, scale):
    """Returns what R queries and C keys give to dq_RH, dk_CH, dv_CH; dq and dk still lack the score scale."""
    s_CR = matmul(k_CH, q_RH, TRANSPOSED) * scale
    if visible_CR is not None:
        s_CR = jnp.where(visible_CR, s_CR, MASKED)
    p_CR = jnp.exp2(s_CR - lse_1R)
    dv_CH = matmul(p_CR.astype(do_RH.dtype), do_RH)
    dp_CR = matmul(v_CH, do_RH, TRANSPOSED)
    ds_CR = (p_CR * (dp_CR - delta_1R)).astype(q_RH.dtype)
    return matmul(ds_CR, k_CH, CONTRACT_ROWS), matmul(ds_CR, q_RH), dv_CH


def _visible(keys, queries, first_1R, causal):
    """Returns visible_CR for slices of one block pair, whose keys and queries count from the block's first key."""
    shape = (keys.stop - keys.start, queries.stop - queries.start)
    key_CR = keys.start + lax.broadcasted_iota(jnp.int32, shape, 0)
    visible_CR = key_CR >= first_1R
    return (
        visible_CR & (key_CR <= queries.start + lax.broadcasted_iota(jnp.int32, shape, 1))
        if causal
        else visible_CR
    )


def _block(refs, accumulators, i, j, *, masked, diagonal, sizes, scale):
    """Adds the block pair (queries i, keys j) to the accumulators."""
    first_ref, q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref = refs
    dq_ref, dk_ref, dv_ref = accumulators
    block = k_ref.shape[0]
    for queries in pieces(block, sizes.diagonal if diagonal else sizes.columns):
        keys = slice(0, queries.stop) if diagonal else slice(0, block)
        at = pl.ds(pl.multiple_of(i * block, block) + queries.start, queries.stop - queries.start)
        into = pl.ds(pl.multiple_of(j * block, block), keys.stop)
        visible_CR = (
            _visible(keys, queries, first_ref[:, at] - j * block, diagonal) if masked else None
        )
        dq_RH, dk_CH, dv_CH = _gradients(
            q_ref[at],
            do_ref[at],
            k_ref[keys],
            v_ref[keys],
            lse_ref[:, at],
            delta_ref[:, at],
            visible_CR,
            scale,
        )
        dq_ref[at] += dq_RH
        dk_ref[into] += dk_CH
        dv_ref[into] += dv_CH


def _kernel(whole_end_ref, end_ref, *refs, sizes, scale, score):
    """One block of keys for one query head.

    whole_end_ref, end_ref: (B, blocks) the block of queries behind the last that sees all, any, of these keys.
    """
    inputs, (dq_out, dk_out, dv_out), accumulators = refs[:7], refs[7:10], refs[10:]
    dq_ref, dk_ref, dv_ref = accumulators
    b, g, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    block = dk_out.shape[0]
    here = pl.ds(pl.multiple_of(j * block, block), block)
    run = functools.partial(_block, inputs, accumulators, sizes=sizes, scale=score)

    @pl.when(j == 0)
    def _():
        dq_ref[...] = jnp.zeros_like(dq_ref)

    @pl.when(g == 0)
    def _():
        dk_ref[here] = jnp.zeros_like(dk_out, jnp.float32)
        dv_ref[here] = jnp.zeros_like(dv_out, jnp.float32)

    run(j, j, masked=True, diagonal=True)
    lax.fori_loop(
        j + 1, whole_end_ref[b, j], lambda i, _: run(i, j, masked=False, diagonal=False), None
    )
    lax.fori_loop(
        jnp.maximum(j + 1, whole_end_ref[b, j]),
        end_ref[b, j],
        lambda i, _: run(i, j, masked=True, diagonal=False),
        None,
    )
    dq_out[...] = (dq_ref[here] * scale).astype(dq_out.dtype)

    @pl.when(g == pl.num_programs(2) - 1)
    def _():
        dk_out[...] = (dk_ref[here] * scale).astype(dk_out.dtype)
        dv_out[...] = dv_ref[here].astype(dv_out.dtype)


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
    """Returns dq_BNTH, dk_BKTH, dv_BKTH.

    Args:
      first_BT, lse_BN1T, sizes: as `pallas_tpu_forward.forward` takes and returns them.
      delta_BN1T: the sum of out * do over the head dim, fp32.

    Raises:
      Refused: for more tokens than the vector memory holds the gradients of.
    """
    B, N, T, H = q_BNTH.shape
    needed = backward_bytes(T, H, sizes.block)
    if not interpret and needed > sizes.vmem_bytes:
        raise Refused(
            f"the gradients of {T} tokens a head take {needed >> 20} MiB of vector memory, the chip has {sizes.vmem_bytes >> 20}:"
            " split the row over more devices of the context axis or use implementation='xla'"
        )
    K = k_BKTH.shape[1]
    block = sizes.block
    G, blocks = N // K, T // block
    starts = jnp.arange(0, T, block)[None, :, None]
    first_key, whole_key = first_BT[:, None, ::block], first_BT[:, None, block - 1 :: block]
    whole_end = jnp.sum(whole_key <= starts, axis=2, dtype=jnp.int32)
    end = jnp.sum(first_key < starts + block, axis=2, dtype=jnp.int32)

    def head(b, k, g, j, *_):
        return b, k * G + g, 0, 0

    def keys(b, k, g, j, *_):
        return b, k, j, 0

    def last_keys(b, k, g, j, *_):
        return b, k, jnp.where(g == G - 1, j, 0), 0

    q_spec, kv_spec = (
        pl.BlockSpec((None, None, T, H), head),
        pl.BlockSpec((None, None, block, H), keys),
    )
    row_spec = pl.BlockSpec((None, None, 1, T), head)
    first_spec = pl.BlockSpec((None, 1, T), lambda b, *_: (b, 0, 0))
    out_spec = pl.BlockSpec((None, None, block, H), last_keys)
    dq_spec = pl.BlockSpec((None, None, block, H), lambda b, k, g, j, *_: (b, k * G + g, j, 0))
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, scale=H**-0.5, score=score_scale(H)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, G, blocks),
            in_specs=[first_spec, q_spec, kv_spec, kv_spec, q_spec, row_spec, row_spec],
            out_specs=[dq_spec, out_spec, out_spec],
            scratch_shapes=[pltpu.VMEM((T, H), jnp.float32)] * 3,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BNTH, k_BKTH, v_BKTH)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="flash_attention_backward",
    )(whole_end, end, first_BT[:, None], q_BNTH, k_BKTH, v_BKTH, do_BNTH, lse_BN1T, delta_BN1T)
