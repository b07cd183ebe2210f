"""Attention in decoding for TPU in Pallas; free slots of the cache are not read.

The formula is that of the online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) as in
`flash_attention/pallas_tpu_forward.py`. One query has few FLOPs per key, so reading the cache
limits the speed.

The grid is (key heads of all sequences, blocks of slots); the last index moves fastest. A grid step
has the G queries of one key head in VMEM, and one block of C slots of its keys and values. Maximum,
sum and accumulator stay in scratch from one block of slots to the next. A block after the end of
its sequence repeats the index of the last useful block, which Pallas does not fetch twice, and
computes nothing.

Shapes: a block has C slots; G query heads share a key head; L the 128 lanes of a register.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import MASKED
from kernels.tpu import (
    LANES,
    TRANSPOSED,
    broadcast_lanes,
    matmul,
    round_up,
    run_kernel,
    sum_lane_groups,
)

# Slots per block: enough bytes to hide the fixed cost of a grid step, while two blocks of keys and
# two of values, for double buffering, fit the smallest VMEM.
BLOCK = 4096
SUBLANES = 16  # rows of a bf16 register


def _kernel(lengths_ref, q_ref, k_ref, v_ref, *refs):
    """Processes one key head and one block of its slots.

    Args:
      lengths_ref: (M,) int32 in SMEM, filled slots of each key head's sequence.
      q_ref, k_ref, v_ref: (G, H) queries, (C, H) keys and values.
      refs: (1, C) fp32 scales of keys and of values, if these are int8; out_ref (G, H); and m_ref,
        l_ref, acc_ref: fp32 maximum (G, L), sum (G, L) and accumulator (G, H) of the online
        softmax. They are fp32, because the sums run over up to 100,000 slots.
    """
    *scale_refs, out_ref, m_ref, l_ref, acc_ref = refs
    head, block = pl.program_id(0), pl.program_id(1)
    # Filled slots from the start of this block on; 0 or less after the end of the sequence.
    filled = lengths_ref[head] - block * k_ref.shape[0]

    # Step 1: clear the state at the first block of a head.
    @pl.when(block == 0)
    def _():
        m_ref[...] = jnp.full_like(m_ref, MASKED)
        l_ref[...] = jnp.zeros_like(l_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    # Blocks after the end of the sequence are skipped.
    @pl.when(filled > 0)
    def _():
        # Step 2: the scores S = Q K^T / sqrt(H). Slots after the end of the sequence are masked;
        # only the last useful block has some, but selecting costs less than a second copy of the
        # code, because the step waits for memory anyway.
        q_GH = q_ref[...]
        k_CH = k_ref[...].astype(q_GH.dtype)
        logits_GC = matmul(q_GH, k_CH, TRANSPOSED) * q_GH.shape[1] ** -0.5
        if scale_refs:
            # One multiplication per slot instead of H: a scale belongs to a column of the scores.
            logits_GC *= scale_refs[0][...]
        visible_GC = lax.broadcasted_iota(jnp.int32, logits_GC.shape, 1) < filled
        logits_GC = jnp.where(visible_GC, logits_GC, MASKED)
        # Step 3: the online softmax, m' = max(m, row maximum of S), P = exp(S - m'),
        # l' = l exp(m - m') + row sum of P. Each lane keeps a separate partial sum.
        m_GL = jnp.maximum(m_ref[...], jnp.max(logits_GC, axis=1, keepdims=True))
        rescale_GL = jnp.exp(m_ref[...] - m_GL)
        p_GC = jnp.exp(logits_GC - broadcast_lanes(m_GL, logits_GC.shape[1]))
        m_ref[...] = m_GL
        l_ref[...] = l_ref[...] * rescale_GL + sum_lane_groups(p_GC)
        # Step 4: acc' = acc exp(m - m') + P V. A free slot may hold NaN, and 0 x NaN is NaN, so its
        # values, or their scale, are set to 0.
        v_CH = v_ref[...].astype(q_GH.dtype)
        if scale_refs:
            p_GC = jnp.where(visible_GC, p_GC * scale_refs[1][...], 0)
        else:
            visible_CH = lax.broadcasted_iota(jnp.int32, v_ref.shape, 0) < filled
            v_CH = jnp.where(visible_CH, v_CH, jnp.zeros((), v_CH.dtype))
        weighted_GH = matmul(p_GC.astype(q_GH.dtype), v_CH)
        acc_ref[...] = acc_ref[...] * broadcast_lanes(rescale_GL, acc_ref.shape[1]) + weighted_GH

    # Step 5: after the last block, skipped or not, out = acc / l is written.
    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        total_G1 = jnp.sum(l_ref[...], axis=1, keepdims=True)
        out_ref[...] = (acc_ref[...] / total_G1).astype(out_ref.dtype)


def _attend(lengths_M, q_MGH, k_MSH, v_MSH, *scales_M1S, block: int, interpret):
    """Runs the kernel with blocks of `block` slots and returns out_MGH."""
    M, G, H = q_MGH.shape

    def queries(m, s, lengths):
        return m, 0, 0

    def slots(m, s, lengths):
        # Equal indices of consecutive grid steps are fetched once: free slots are not read.
        last_block = lax.div(lengths[m] - 1, block)
        return m, jnp.minimum(s, last_block), 0

    def scales(m, s, lengths):
        return m, 0, slots(m, s, lengths)[1]

    q_spec = pl.BlockSpec((None, G, H), queries)
    kv_spec = pl.BlockSpec((None, block, H), slots)
    scale_specs = [pl.BlockSpec((None, 1, block), scales)] * len(scales_M1S)
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(M, pl.cdiv(k_MSH.shape[1], block)),
            in_specs=[q_spec, kv_spec, kv_spec, *scale_specs],
            out_specs=q_spec,
            scratch_shapes=[pltpu.VMEM((G, width), jnp.float32) for width in (LANES, LANES, H)],
        ),
        out_shape=jax.ShapeDtypeStruct(q_MGH.shape, q_MGH.dtype),
        compiler_params=pltpu.CompilerParams(
            # The blocks of a head share the softmax state, so one core runs them in order. Heads
            # are independent: a chip with two cores may split them.
            dimension_semantics=("parallel", "arbitrary")
        ),
        interpret=interpret,
        name="decode_attention",
    )(lengths_M, q_MGH, k_MSH, v_MSH, *scales_M1S)


def decode_attention(
    q_MGH, k_MSH, v_MSH, lengths_M, *scales_MS, block=BLOCK, interpret=None
) -> jax.Array:
    """Returns out_MGH as `api.decode_attention` does; lengths_M is per key head.

    Args:
      q_MGH, k_MSH, v_MSH: as in `api.decode_attention`.
      lengths_M: int32, filled slots of each key head's sequence.
      scales_MS: of keys and of values, if these are int8.
      block: slots per block, a multiple of 128.
      interpret: as `tpu.run_kernel` takes it.
    """
    G, S = q_MGH.shape[1], k_MSH.shape[1]
    # A bf16 register has 16 rows. Padding the query heads to full registers costs no time, because
    # the matrix units would be idle for the missing rows anyway.
    padded_MGH = jnp.pad(q_MGH, ((0, 0), (0, -G % SUBLANES), (0, 0)))
    kernel = functools.partial(_attend, block=min(block, round_up(S, LANES)))
    # A row of scales per head: Mosaic takes blocks whose last but one dim is the full dim.
    scales_M1S = [scale_MS[:, None] for scale_MS in scales_MS]
    arrays = (lengths_M.astype(jnp.int32), padded_MGH, k_MSH, v_MSH, *scales_M1S)
    return run_kernel(kernel, *arrays, interpret=interpret)[:, :G]
