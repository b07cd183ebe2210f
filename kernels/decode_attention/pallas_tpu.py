"""Decoding attention for TPU in Pallas: what bounds it is reading the cache, so no slot past a row's length is read.

Heads of all rows and blocks of their slots form the grid. A block past the length of its row names the last block again,
which is not fetched twice, and computes nothing. Blocks: C slots.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.tpu import LANES, MASKED, TRANSPOSED, anywhere, fold, matmul, spread

BLOCK = 4096  # slots: enough bytes a step to hide what a step costs, two of keys and two of values within the smallest VMEM
SUBLANES = 16  # rows of a bf16 register


def _kernel(lengths_ref, q_ref, k_ref, v_ref, *refs):
    """One head and one block of its slots. `refs` begins with the scales of keys and values where there are any."""
    k_scale_ref, v_scale_ref, out_ref, m_ref, l_ref, acc_ref = (
        refs if len(refs) == 6 else (None, None, *refs)
    )
    head, block = pl.program_id(0), pl.program_id(1)
    left = lengths_ref[head] - block * k_ref.shape[0]

    @pl.when(block == 0)
    def _():
        m_ref[...] = jnp.full_like(m_ref, MASKED)
        l_ref[...] = jnp.zeros_like(l_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    @pl.when(left > 0)
    def _():
        q_GH = q_ref[...]
        logits_GC = matmul(q_GH, k_ref[...].astype(q_GH.dtype), TRANSPOSED) * q_GH.shape[1] ** -0.5
        if k_scale_ref is not None:
            logits_GC *= k_scale_ref[...]
        visible_GC = lax.broadcasted_iota(jnp.int32, logits_GC.shape, 1) < left
        logits_GC = jnp.where(visible_GC, logits_GC, MASKED)
        m_GL = jnp.maximum(m_ref[...], jnp.max(logits_GC, axis=1, keepdims=True))
        keep_GL = jnp.exp(m_ref[...] - m_GL)
        p_GC = jnp.exp(logits_GC - spread(m_GL, logits_GC.shape[1]))
        m_ref[...] = m_GL
        l_ref[...] = l_ref[...] * keep_GL + fold(p_GC)
        if v_scale_ref is not None:
            p_GC = jnp.where(visible_GC, p_GC * v_scale_ref[...], 0)
        visible_CH = lax.broadcasted_iota(jnp.int32, v_ref.shape, 0) < left
        v_CH = jnp.where(
            visible_CH, v_ref[...].astype(q_GH.dtype), jnp.zeros((), q_GH.dtype)
        )  # a free slot may hold NaN
        acc_ref[...] = acc_ref[...] * spread(keep_GL, acc_ref.shape[1]) + matmul(
            p_GC.astype(q_GH.dtype), v_CH
        )

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        out_ref[...] = (acc_ref[...] / jnp.sum(l_ref[...], axis=1, keepdims=True)).astype(
            out_ref.dtype
        )


def _attend(lengths_M, q_MGH, k_MSH, v_MSH, *scales, block: int, interpret):
    """Runs the kernel; `block` slots at once, scales_M1S as the keys and the values need them."""
    M, G, H = q_MGH.shape
    slots = lambda m, s, lengths: jnp.minimum(s, lax.div(lengths[m] - 1, block))
    q_spec = pl.BlockSpec((None, G, H), lambda m, s, _: (m, 0, 0))
    kv_spec = pl.BlockSpec((None, block, H), lambda m, s, lengths: (m, slots(m, s, lengths), 0))
    scale_spec = pl.BlockSpec((None, 1, block), lambda m, s, lengths: (m, 0, slots(m, s, lengths)))
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(M, pl.cdiv(k_MSH.shape[1], block)),
            in_specs=[q_spec, kv_spec, kv_spec, *[scale_spec] * len(scales)],
            out_specs=q_spec,
            scratch_shapes=[pltpu.VMEM((G, width), jnp.float32) for width in (LANES, LANES, H)],
        ),
        out_shape=jax.ShapeDtypeStruct(q_MGH.shape, q_MGH.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="decode_attention",
    )(lengths_M, q_MGH, k_MSH, v_MSH, *scales)


def decode_attention(
    q_MGH, k_MSH, v_MSH, lengths_M, k_scale_MS=None, v_scale_MS=None, *, block=BLOCK, interpret=None
) -> jax.Array:
    """See `api.decode_attention`. block: slots at once, a multiple of 128. interpret: `pallas_call`'s; None compiles for TPU only."""
    G, S = q_MGH.shape[1], k_MSH.shape[1]
    scales = [scale_MS[:, None] for scale_MS in (k_scale_MS, v_scale_MS) if scale_MS is not None]
    padded_MGH = jnp.pad(q_MGH, ((0, 0), (0, -G % SUBLANES), (0, 0)))
    run = functools.partial(_attend, block=min(block, -(-S // LANES) * LANES))
    return anywhere(
        run, lengths_M.astype(jnp.int32), padded_MGH, k_MSH, v_MSH, *scales, interpret=interpret
    )[:, :G]
