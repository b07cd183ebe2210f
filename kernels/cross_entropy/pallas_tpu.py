"""Cross-entropy for TPU in Pallas: no logits leave vector memory, and no gradient is read back to be added to.

Forward, a block of tokens goes through the vocabulary as attention goes through keys: an online softmax sums exp(logit)
times the head's columns, the activations' gradient but for the target's part. That part, p - 1 times one column, joins
outside, where p - 1 comes from the loss in fp32 and does not cancel. Backward for the head, a block of words goes through
the tokens with their log-sum-exp known. Four products in all. The head is read as (V, D), which is how the compiler lays
out a (D, V) weight of such a vocabulary, and cast block by block. Blocks: R tokens, C words.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.cross_entropy.block_sizes import BlockSizes, choose
from kernels.cross_entropy.xla import chunks, over_shards
from kernels.tpu import CONTRACT_ROWS, LANES, MASKED, TRANSPOSED, anywhere, fold, matmul, spread

CHUNK = 4096  # tokens that go forward at once: the parts of their gradient that meet outside the kernel take memory


def _logits(x_RD, head_CD, words, block):
    """Returns logits_RC, MASKED where there is no word, and the number of each column."""
    logits_RC = matmul(x_RD, head_CD, TRANSPOSED)
    column_RC = block * logits_RC.shape[1] + lax.broadcasted_iota(jnp.int32, logits_RC.shape, 1)
    return jnp.where(column_RC < words, logits_RC, MASKED), column_RC


def _forward_kernel(words_ref, x_ref, head_ref, targets_ref, lse_ref, target_ref, *refs):
    """One block of tokens and one of words. With gradients `refs` begins with their output and ends with their accumulator."""
    (dx_ref, m_ref, l_ref, hit_ref, acc_ref) = refs if len(refs) == 5 else (None, *refs, None)
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _():
        m_ref[...] = jnp.full_like(m_ref, MASKED)
        for ref in (l_ref, hit_ref) if acc_ref is None else (l_ref, hit_ref, acc_ref):
            ref[...] = jnp.zeros_like(ref)

    head_CD = head_ref[...].astype(x_ref.dtype)
    logits_RC, column_RC = _logits(x_ref[...], head_CD, words_ref[0], block)
    hit_RC = column_RC == targets_ref[...]
    m_RL = jnp.maximum(m_ref[...], jnp.max(logits_RC, axis=1, keepdims=True))
    keep_RL = jnp.exp(m_ref[...] - m_RL)
    e_RC = jnp.exp(logits_RC - spread(m_RL, logits_RC.shape[1]))
    m_ref[...] = m_RL
    l_ref[...] = l_ref[...] * keep_RL + fold(e_RC)
    hit_ref[...] += fold(jnp.where(hit_RC, logits_RC, 0))
    if acc_ref is not None:
        word_CD = (
            block * head_CD.shape[0] + lax.broadcasted_iota(jnp.int32, head_CD.shape, 0)
            < words_ref[0]
        )
        head_CD = jnp.where(
            word_CD, head_CD, jnp.zeros((), head_CD.dtype)
        )  # what lies behind its end may be NaN
        others_RD = matmul(jnp.where(hit_RC, 0, e_RC).astype(head_CD.dtype), head_CD)
        acc_ref[...] = acc_ref[...] * spread(keep_RL, acc_ref.shape[1]) + others_RD

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        l_R1 = jnp.sum(l_ref[...], axis=1, keepdims=True)
        lse_ref[...] = m_ref[:, :1] + jnp.log(l_R1)
        target_ref[...] = jnp.sum(hit_ref[...], axis=1, keepdims=True)
        if acc_ref is not None:
            dx_ref[...] = (acc_ref[...] / l_R1).astype(dx_ref.dtype)


def _forward(x_TD, head_VD, targets_T1, words_1, sizes: BlockSizes, gradients: bool, interpret):
    """Returns lse_T1 and target_T1 of these words and, with `gradients`, the softmax times the head without the target, in x's dtype."""
    (T, D), V = x_TD.shape, len(head_VD)
    x_spec = pl.BlockSpec((sizes.tokens, D), lambda t, v, _: (t, 0))
    column = pl.BlockSpec((sizes.tokens, 1), lambda t, v, _: (t, 0))
    state = [pltpu.VMEM((sizes.tokens, width), jnp.float32) for width in (LANES, LANES, LANES, D)]
    outputs = [jax.ShapeDtypeStruct((T, 1), jnp.float32)] * 2 + [
        jax.ShapeDtypeStruct((T, D), x_TD.dtype)
    ]
    return pl.pallas_call(
        _forward_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(T // sizes.tokens, pl.cdiv(V, sizes.words)),
            in_specs=[x_spec, pl.BlockSpec((sizes.words, D), lambda t, v, _: (v, 0)), column],
            out_specs=[column, column, x_spec][: 2 + gradients],
            scratch_shapes=state[: 3 + gradients],
        ),
        out_shape=outputs[: 2 + gradients],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes.vmem_bytes
        ),
        interpret=interpret,
        name="cross_entropy_forward",
    )(words_1, x_TD, head_VD, targets_T1)


def _head_kernel(words_ref, x_ref, head_ref, targets_ref, lse_ref, weights_ref, dhead_ref):
    """One block of words and one of tokens."""
    logits_RC, column_RC = _logits(
        x_ref[...], head_ref[...].astype(x_ref.dtype), words_ref[0], pl.program_id(0)
    )
    p_RC = jnp.exp(logits_RC - lse_ref[...])
    d_RC = (p_RC - (column_RC == targets_ref[...]).astype(jnp.float32)) * weights_ref[...]

    @pl.when(pl.program_id(1) == 0)
    def _():
        dhead_ref[...] = jnp.zeros_like(dhead_ref)

    dhead_ref[...] += matmul(d_RC.astype(x_ref.dtype), x_ref[...], CONTRACT_ROWS)


def _head_gradient(
    x_TD, head_VD, targets_T1, lse_T1, weights_T1, words_1, sizes: BlockSizes, interpret
):
    """Returns dhead_VD in fp32."""
    (T, D), V = x_TD.shape, len(head_VD)
    column = pl.BlockSpec((sizes.tokens, 1), lambda v, t, _: (t, 0))
    head_spec = pl.BlockSpec((sizes.words, D), lambda v, t, _: (v, 0))
    return pl.pallas_call(
        _head_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(V, sizes.words), T // sizes.tokens),
            in_specs=[
                pl.BlockSpec((sizes.tokens, D), lambda v, t, _: (t, 0)),
                head_spec,
                column,
                column,
                column,
            ],
            out_specs=head_spec,
        ),
        out_shape=jax.ShapeDtypeStruct(head_VD.shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes.vmem_bytes
        ),
        interpret=interpret,
        name="cross_entropy_head",
    )(words_1, x_TD, head_VD, targets_T1, lse_T1, weights_T1)


def _blocks(x_TD, head_DV, targets_T, words, sizes):
    """Returns the block sizes, and what `_forward` reads: the tokens filled up to whole blocks, the head, and the number of words."""
    T, V = len(x_TD), head_DV.shape[1]
    sizes = sizes or choose(T, V, x_TD.shape[1], x_TD.dtype.itemsize, head_DV.dtype.itemsize)
    padding = (0, -T % sizes.tokens), (0, 0)
    words_1 = jnp.asarray(V if words is None else words, jnp.int32).reshape(1)
    targets_T = jnp.where(
        targets_T < V, targets_T, -1
    )  # or the columns that fill the last block would be hit
    targets_T1 = jnp.pad(targets_T[:, None], padding, constant_values=-1)
    return sizes, (jnp.pad(x_TD, padding), head_DV.T, targets_T1, words_1)


def losses(x_TD, head_DV, targets_T, words, axes, *, sizes=None, interpret=None) -> jax.Array:
    """See `xla.losses`. sizes, interpret: chosen from the shapes, and the platform that the program is lowered for, when None."""
    T = len(x_TD)
    sizes, arrays = _blocks(x_TD, head_DV, targets_T, words, sizes)
    lse_T1, target_T1 = anywhere(
        functools.partial(_forward, sizes=sizes, gradients=False), *arrays, interpret=interpret
    )
    lse_T, target_T = over_shards(lse_T1[:T, 0], target_T1[:T, 0], axes)
    return lse_T - target_T


def _activations(x_TD, head_DV, targets_T, weights_T, words, axes, sizes, interpret):
    """Returns lse_T, losses_T and dx_TD."""
    T = len(x_TD)
    sizes, arrays = _blocks(x_TD, head_DV, targets_T, words, sizes)
    outputs = anywhere(
        functools.partial(_forward, sizes=sizes, gradients=True), *arrays, interpret=interpret
    )
    here_T1, target_T1, others_TD = (a[:T] for a in outputs)
    lse_T, target_T = over_shards(here_T1[:, 0], target_T1[:, 0], axes)
    at_T = jnp.clip(targets_T, 0, head_DV.shape[1] - 1)
    column_TD = jnp.where((at_T == targets_T)[:, None], head_DV.T[at_T], 0)
    miss_T = jnp.expm1(target_T - lse_T)
    dx_TD = others_TD * jnp.exp(here_T1 - lse_T[:, None]) + column_TD * miss_T[:, None]
    dx_TD = (jax.lax.psum(dx_TD, axes) if axes else dx_TD) * weights_T[:, None]
    return lse_T, lse_T - target_T, dx_TD.astype(x_TD.dtype)


def losses_and_gradients(
    x_TD, head_DV, targets_T, weights_T, words, axes, *, sizes=None, interpret=None
):
    """See `xla.losses_and_gradients` and `losses`."""
    T = len(x_TD)
    parts = chunks(CHUNK, x_TD, targets_T, weights_T)
    activations = lambda part: _activations(
        part[0], head_DV, *part[1:], words, axes, sizes, interpret
    )
    lse_T, losses_T, dx_TD = (a.reshape(-1, *a.shape[2:])[:T] for a in lax.map(activations, parts))
    sizes, (padded_TD, head_VD, targets_T1, words_1) = _blocks(
        x_TD, head_DV, targets_T, words, sizes
    )
    columns = [jnp.pad(a, (0, len(padded_TD) - T))[:, None] for a in (lse_T, weights_T)]
    run = functools.partial(_head_gradient, sizes=sizes)
    dhead_VD = anywhere(run, padded_TD, head_VD, targets_T1, *columns, words_1, interpret=interpret)
    return losses_T, dx_TD, dhead_VD.T
