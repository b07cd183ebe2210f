"""Cross-entropy for TPU in Pallas: no logits leave VMEM, no gradient is read back to be added to.

Forward, a block of tokens passes over the vocabulary as attention passes over keys. The online
softmax accumulates exp(logit) x column of the head, which is the activations' gradient without the
target's part. That part, (p - 1) x the target's column, is added outside the kernel, where p - 1
comes from the fp32 loss and does not cancel. For the head's gradient, a block of the vocabulary
passes over the tokens with their log-sum-exp known. That makes four matmuls in all.

The head is read as (V, D), which is how the compiler stores a (D, V) weight of such a vocabulary,
and is cast block by block. Blocks: R tokens, C vocabulary entries; L the 128 lanes of a register.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import MASKED
from kernels.cross_entropy.block_sizes import BlockSizes, choose
from kernels.cross_entropy.xla import chunks, over_shards
from kernels.tpu import (
    CONTRACT_ROWS,
    LANES,
    TRANSPOSED,
    broadcast_lanes,
    matmul,
    run_kernel,
    sum_lane_groups,
)

CHUNK = 4096  # tokens per forward call; the parts of dx that meet outside the kernel take memory


def _logits(x_RD, head_CD, block, vocab):
    """Returns logits_RC, and column_RC: the id of each column.

    The last block may extend past the vocabulary; those columns are masked.
    """
    logits_RC = matmul(x_RD, head_CD, TRANSPOSED)
    column_RC = block * logits_RC.shape[1] + lax.broadcasted_iota(jnp.int32, logits_RC.shape, 1)
    return jnp.where(column_RC < vocab, logits_RC, MASKED), column_RC


def _forward_kernel(x_ref, head_ref, targets_ref, *refs, vocab, gradients):
    """Processes one block of tokens and one block of the vocabulary.

    Args:
      x_ref, head_ref, targets_ref: (R, D) activations, (C, D) head, (R, 1) target ids.
      refs: outputs lse_ref and target_ref (R, 1), and dx_ref (R, D) with `gradients`; then the
        scratch m_ref, l_ref and target_logit_ref (R, L), and acc_ref (R, D) with `gradients`.
      vocab: number of vocabulary entries.
      gradients: whether the activations' gradient is computed.
    """
    if gradients:
        lse_ref, target_ref, dx_ref, m_ref, l_ref, target_logit_ref, acc_ref = refs
    else:
        lse_ref, target_ref, m_ref, l_ref, target_logit_ref = refs
    block = pl.program_id(1)

    # Step 1: clear the state at the first block of the vocabulary.
    @pl.when(block == 0)
    def _():
        m_ref[...] = jnp.full_like(m_ref, MASKED)
        l_ref[...] = jnp.zeros_like(l_ref)
        target_logit_ref[...] = jnp.zeros_like(target_logit_ref)
        if gradients:
            acc_ref[...] = jnp.zeros_like(acc_ref)

    # Step 2: logits, and the online softmax. Old sums are rescaled to the new maximum; each lane
    # keeps its own partial sum until the last block.
    head_CD = head_ref[...].astype(x_ref.dtype)
    logits_RC, column_RC = _logits(x_ref[...], head_CD, block, vocab)
    is_target_RC = column_RC == targets_ref[...]
    m_RL = jnp.maximum(m_ref[...], jnp.max(logits_RC, axis=1, keepdims=True))
    rescale_RL = jnp.exp(m_ref[...] - m_RL)
    e_RC = jnp.exp(logits_RC - broadcast_lanes(m_RL, logits_RC.shape[1]))
    m_ref[...] = m_RL
    l_ref[...] = l_ref[...] * rescale_RL + sum_lane_groups(e_RC)
    target_logit_ref[...] += sum_lane_groups(jnp.where(is_target_RC, logits_RC, 0))

    # Step 3: the gradient without the target's part.
    if gradients:
        # Memory after the end of the head may hold NaN, which a weight of zero would not remove.
        row_CD = block * head_CD.shape[0] + lax.broadcasted_iota(jnp.int32, head_CD.shape, 0)
        head_CD = jnp.where(row_CD < vocab, head_CD, jnp.zeros((), head_CD.dtype))
        e_RC = jnp.where(is_target_RC, 0, e_RC).astype(head_CD.dtype)
        rescale_RD = broadcast_lanes(rescale_RL, acc_ref.shape[1])
        acc_ref[...] = acc_ref[...] * rescale_RD + matmul(e_RC, head_CD)

    # Step 4: write the results after the last block.
    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        l_R1 = jnp.sum(l_ref[...], axis=1, keepdims=True)
        lse_ref[...] = m_ref[:, :1] + jnp.log(l_R1)
        target_ref[...] = jnp.sum(target_logit_ref[...], axis=1, keepdims=True)
        if gradients:
            dx_ref[...] = (acc_ref[...] / l_R1).astype(dx_ref.dtype)


def _forward(x_TD, head_VD, targets_T1, *, sizes: BlockSizes, gradients: bool, interpret):
    """Returns lse_T1 and target_T1 of this shard.

    With `gradients` it also returns the softmax times the head without the target's part, in x's
    dtype.
    """
    (T, D), V = x_TD.shape, len(head_VD)

    def token_block(t, v):
        return t, 0

    def vocab_block(t, v):
        return v, 0

    x_spec = pl.BlockSpec((sizes.tokens, D), token_block)
    head_spec = pl.BlockSpec((sizes.vocab, D), vocab_block)
    column_spec = pl.BlockSpec((sizes.tokens, 1), token_block)
    out_specs = [column_spec, column_spec]
    out_shapes = [jax.ShapeDtypeStruct((T, 1), jnp.float32)] * 2
    scratch = [pltpu.VMEM((sizes.tokens, LANES), jnp.float32)] * 3
    if gradients:
        out_specs.append(x_spec)
        out_shapes.append(jax.ShapeDtypeStruct((T, D), x_TD.dtype))
        scratch.append(pltpu.VMEM((sizes.tokens, D), jnp.float32))
    return pl.pallas_call(
        functools.partial(_forward_kernel, vocab=V, gradients=gradients),
        grid=(T // sizes.tokens, pl.cdiv(V, sizes.vocab)),
        in_specs=[x_spec, head_spec, column_spec],
        out_specs=out_specs,
        scratch_shapes=scratch,
        out_shape=out_shapes,
        compiler_params=pltpu.CompilerParams(
            # The vocabulary blocks of a token block share the state: a core runs them in order.
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="cross_entropy_forward",
    )(x_TD, head_VD, targets_T1)


def _head_kernel(x_ref, head_ref, targets_ref, lse_ref, weights_ref, dhead_ref, *, vocab):
    """Adds one block of tokens to the gradient of one block of the vocabulary.

    Args:
      x_ref, head_ref: (R, D) activations, (C, D) head.
      targets_ref, lse_ref, weights_ref: (R, 1) target ids, log-sum-exps and loss weights.
      dhead_ref: (C, D) output, which stays in VMEM while the token blocks pass.
      vocab: number of vocabulary entries.
    """
    head_CD = head_ref[...].astype(x_ref.dtype)
    logits_RC, column_RC = _logits(x_ref[...], head_CD, pl.program_id(0), vocab)
    p_RC = jnp.exp(logits_RC - lse_ref[...])
    is_target_RC = (column_RC == targets_ref[...]).astype(jnp.float32)
    d_RC = (p_RC - is_target_RC) * weights_ref[...]

    @pl.when(pl.program_id(1) == 0)
    def _():
        dhead_ref[...] = jnp.zeros_like(dhead_ref)

    dhead_ref[...] += matmul(d_RC.astype(x_ref.dtype), x_ref[...], CONTRACT_ROWS)


def _head_gradient(x_TD, head_VD, targets_T1, lse_T1, weights_T1, *, sizes: BlockSizes, interpret):
    """Returns dhead_VD in fp32."""
    (T, D), V = x_TD.shape, len(head_VD)

    def token_block(v, t):
        return t, 0

    def vocab_block(v, t):
        return v, 0

    x_spec = pl.BlockSpec((sizes.tokens, D), token_block)
    head_spec = pl.BlockSpec((sizes.vocab, D), vocab_block)
    column_spec = pl.BlockSpec((sizes.tokens, 1), token_block)
    return pl.pallas_call(
        functools.partial(_head_kernel, vocab=V),
        grid=(pl.cdiv(V, sizes.vocab), T // sizes.tokens),
        in_specs=[x_spec, head_spec, column_spec, column_spec, column_spec],
        out_specs=head_spec,
        out_shape=jax.ShapeDtypeStruct(head_VD.shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(
            # The token blocks of a vocabulary block add to one output: a core runs them in order.
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="cross_entropy_head",
    )(x_TD, head_VD, targets_T1, lse_T1, weights_T1)


def _blocks(x_TD, head_DV, targets_T, sizes):
    """Returns the block sizes and the kernels' inputs: padded x_TD, head_VD, targets_T1."""
    T, V = len(x_TD), head_DV.shape[1]
    itemsizes = x_TD.dtype.itemsize, head_DV.dtype.itemsize
    sizes = sizes or choose(T, V, x_TD.shape[1], *itemsizes)
    padding = (0, -T % sizes.tokens), (0, 0)
    # A target past V must not equal a column that fills the last block: -1 equals none.
    targets_T = jnp.where(targets_T < V, targets_T, -1)
    targets_T1 = jnp.pad(targets_T[:, None], padding, constant_values=-1)
    return sizes, (jnp.pad(x_TD, padding), head_DV.T, targets_T1)


def losses(x_TD, head_DV, targets_T, axes, *, sizes=None, interpret=None) -> jax.Array:
    """See `xla.losses`.

    Args:
      x_TD, head_DV, targets_T, axes: as in `xla.losses`.
      sizes: block sizes; None chooses them from the shapes and the chip.
      interpret: as `tpu.run_kernel` takes it.
    """
    T = len(x_TD)
    sizes, arrays = _blocks(x_TD, head_DV, targets_T, sizes)
    kernel = functools.partial(_forward, sizes=sizes, gradients=False)
    lse_T1, target_T1 = run_kernel(kernel, *arrays, interpret=interpret)
    lse_T, target_T = over_shards(lse_T1[:T, 0], target_T1[:T, 0], axes)
    return lse_T - target_T


def _activations(x_TD, head_DV, targets_T, weights_T, axes, sizes, interpret):
    """Returns lse_T, losses_T and dx_TD; arguments as in `losses_and_gradients`."""
    T = len(x_TD)
    sizes, arrays = _blocks(x_TD, head_DV, targets_T, sizes)
    kernel = functools.partial(_forward, sizes=sizes, gradients=True)
    outputs = run_kernel(kernel, *arrays, interpret=interpret)
    shard_lse_T1, shard_target_T1, others_TD = (a[:T] for a in outputs)
    lse_T, target_T = over_shards(shard_lse_T1[:, 0], shard_target_T1[:, 0], axes)
    # The target's part of the gradient: (p - 1) x its column, if this shard has it.
    index_T = jnp.clip(targets_T, 0, head_DV.shape[1] - 1)
    column_TD = jnp.where((index_T == targets_T)[:, None], head_DV.T[index_T], 0)
    p_minus_1_T = jnp.expm1(target_T - lse_T)
    # The kernel normalised by the shard's sum; rescale to the sum over all shards.
    others_TD = others_TD * jnp.exp(shard_lse_T1 - lse_T[:, None])
    dx_TD = others_TD + column_TD * p_minus_1_T[:, None]
    if axes:
        dx_TD = jax.lax.psum(dx_TD, axes)
    return lse_T, lse_T - target_T, (dx_TD * weights_T[:, None]).astype(x_TD.dtype)


def losses_and_gradients(x_TD, head_DV, targets_T, weights_T, axes, *, sizes=None, interpret=None):
    """See `xla.losses_and_gradients`.

    Args:
      x_TD, head_DV, targets_T, weights_T, axes: as in `xla.losses_and_gradients`.
      sizes, interpret: as in `losses`.
    """
    T = len(x_TD)

    def chunk(part):
        x_TD, targets_T, weights_T = part
        return _activations(x_TD, head_DV, targets_T, weights_T, axes, sizes, interpret)

    outputs = lax.map(chunk, chunks(CHUNK, x_TD, targets_T, weights_T))
    lse_T, losses_T, dx_TD = (a.reshape(-1, *a.shape[2:])[:T] for a in outputs)
    sizes, (padded_TD, head_VD, targets_T1) = _blocks(x_TD, head_DV, targets_T, sizes)
    padding = (0, len(padded_TD) - T)
    lse_T1, weights_T1 = (jnp.pad(a, padding)[:, None] for a in (lse_T, weights_T))
    kernel = functools.partial(_head_gradient, sizes=sizes)
    arrays = (padded_TD, head_VD, targets_T1, lse_T1, weights_T1)
    dhead_VD = run_kernel(kernel, *arrays, interpret=interpret)
    return losses_T, dx_TD, dhead_VD.T
