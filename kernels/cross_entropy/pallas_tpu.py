"""Cross-entropy for TPU in Pallas: the logits never leave VMEM.

With logits z = x head, lse = log sum exp(z) and p = exp(z - lse), the loss of a token is
lse - z[target], and its gradients are

    dx = sum over v of p[v] head[v] - head[target]          dhead[v] = (p[v] - [v = target]) x

Wijmans et al. 2024 (arXiv:2411.09009) compute the loss in the same way. Two kernels:

- `_forward_kernel`, grid (token block, vocabulary block): a block of tokens passes over the
  vocabulary as attention passes over keys. The online softmax (Milakov and Gimelshein 2018,
  arXiv:1805.02867) also accumulates exp(z) x head row, which is dx without the target's part. That
  part, (p - 1) x the target's row, is added outside the kernel, where p - 1 is computed from the
  fp32 loss and does not cancel.
- `_head_kernel`, grid (vocabulary block, token block): a block of the vocabulary passes over the
  tokens, whose log-sum-exp is then known, and accumulates dhead.

That makes four matmuls, one more than the three of a loss that keeps its logits. In both grids the
last index moves fastest, so that the block which accumulates stays in VMEM and is written once.

The head is read as (V, D), which is how the compiler stores a (D, V) weight of such a vocabulary,
and is cast to the activations' dtype block by block.

Shapes: a block has R tokens and C vocabulary entries; L the 128 lanes of a register.
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

# Tokens per call of the forward kernel. The two parts of dx are fp32 arrays outside of the kernel
# before they are added; chunks bound their memory.
CHUNK = 4096


def _logits(x_RD, head_CD, block, vocab):
    """Returns fp32 logits_RC, and int32 column_RC with the token id of each column.

    The last block may extend past the vocabulary. Its extra columns are masked, so that they add
    nothing to the softmax.
    """
    logits_RC = matmul(x_RD, head_CD, TRANSPOSED)
    column_RC = block * logits_RC.shape[1] + lax.broadcasted_iota(jnp.int32, logits_RC.shape, 1)
    return jnp.where(column_RC < vocab, logits_RC, MASKED), column_RC


def _forward_kernel(x_ref, head_ref, targets_ref, *refs, vocab, gradients):
    """Processes one block of tokens and one block of the vocabulary.

    Args:
      x_ref, head_ref, targets_ref: blocks in VMEM: (R, D) activations, (C, D) rows of the head,
        (R, 1) target ids.
      refs: outputs lse_ref and target_ref (R, 1), and dx_ref (R, D) with `gradients`; then the
        fp32 scratch, carried over the vocabulary blocks of a token block: the maximum m_ref, the
        sum l_ref and the target's logit target_logit_ref (R, L), and acc_ref (R, D) with
        `gradients`.
      vocab: number of vocabulary entries.
      gradients: whether the activations' gradient is computed.
    """
    if gradients:
        lse_ref, target_ref, dx_ref, m_ref, l_ref, target_logit_ref, acc_ref = refs
    else:
        lse_ref, target_ref, m_ref, l_ref, target_logit_ref = refs
    block = pl.program_id(1)

    # Step 1: clear the state at the first block of the vocabulary. MASKED is below every logit, so
    # the first rescaling factor, exp(MASKED - m'), is 0.
    @pl.when(block == 0)
    def _():
        m_ref[...] = jnp.full_like(m_ref, MASKED)
        l_ref[...] = jnp.zeros_like(l_ref)
        target_logit_ref[...] = jnp.zeros_like(target_logit_ref)
        if gradients:
            acc_ref[...] = jnp.zeros_like(acc_ref)

    # Step 2: the logits z = x head^T, and the online softmax: m' = max(m, row maximum of z),
    # l' = l exp(m - m') + row sum of exp(z - m'). Each lane keeps a separate partial sum until the
    # last block, because adding lanes to each other is slow.
    head_CD = head_ref[...].astype(x_ref.dtype)
    logits_RC, column_RC = _logits(x_ref[...], head_CD, block, vocab)
    is_target_RC = column_RC == targets_ref[...]
    m_RL = jnp.maximum(m_ref[...], jnp.max(logits_RC, axis=1, keepdims=True))
    rescale_RL = jnp.exp(m_ref[...] - m_RL)
    e_RC = jnp.exp(logits_RC - broadcast_lanes(m_RL, logits_RC.shape[1]))
    m_ref[...] = m_RL
    l_ref[...] = l_ref[...] * rescale_RL + sum_lane_groups(e_RC)
    # Exactly one column over all blocks is the target, so a sum picks its logit without a gather.
    target_logit_ref[...] += sum_lane_groups(jnp.where(is_target_RC, logits_RC, 0))

    # Step 3: dx without the target's part, acc' = acc exp(m - m') + exp(z - m') head. acc is fp32,
    # because it sums over the full vocabulary.
    if gradients:
        # The last block reads memory after the end of the head. It may hold NaN, and 0 x NaN is
        # NaN, so these rows are set to 0 although their weights are 0 already.
        row_CD = block * head_CD.shape[0] + lax.broadcasted_iota(jnp.int32, head_CD.shape, 0)
        head_CD = jnp.where(row_CD < vocab, head_CD, jnp.zeros((), head_CD.dtype))
        e_RC = jnp.where(is_target_RC, 0, e_RC).astype(head_CD.dtype)
        rescale_RD = broadcast_lanes(rescale_RL, acc_ref.shape[1])
        acc_ref[...] = acc_ref[...] * rescale_RD + matmul(e_RC, head_CD)

    # Step 4: after the last vocabulary block the sums are complete and the outputs are written. The
    # index of an output block depends on the token block alone, so Pallas copies it to HBM once.
    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        l_R1 = jnp.sum(l_ref[...], axis=1, keepdims=True)
        lse_ref[...] = m_ref[:, :1] + jnp.log(l_R1)
        target_ref[...] = jnp.sum(target_logit_ref[...], axis=1, keepdims=True)
        if gradients:
            dx_ref[...] = (acc_ref[...] / l_R1).astype(dx_ref.dtype)


def _forward(x_TD, head_VD, targets_T1, *, sizes: BlockSizes, gradients: bool, interpret):
    """Returns fp32 lse_T1 and target_T1, and with `gradients` dx_TD without the target's part.

    Args:
      x_TD: activations; `sizes.tokens` divides T.
      head_VD: this device's shard of the head.
      targets_T1: int32 rows of this shard, -1 if another shard has the target.
      sizes: block sizes.
      gradients: whether dx_TD is computed, in x's dtype.
      interpret: as `pl.pallas_call` takes it.
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
            # The vocabulary blocks of a token block share the state, so one core runs them in
            # order. Token blocks are independent: a chip with two cores may split them.
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="cross_entropy_forward",
    )(x_TD, head_VD, targets_T1)


def _head_kernel(x_ref, head_ref, targets_ref, lse_ref, weights_ref, dhead_ref, *, vocab):
    """Adds one block of tokens to the gradient of one block of the vocabulary.

    Args:
      x_ref, head_ref: (R, D) activations, (C, D) rows of the head.
      targets_ref, lse_ref, weights_ref: (R, 1) target ids, log-sum-exps and loss weights.
      dhead_ref: (C, D) fp32 output. Its block index does not depend on the token block, so it stays
        in VMEM while the token blocks pass, and is the accumulator itself.
      vocab: number of vocabulary entries.
    """
    # Step 1: the logits again, and p = exp(z - lse). lse covers all shards of the vocabulary, so p
    # is complete without another pass. Padding tokens have weight 0 and add nothing.
    head_CD = head_ref[...].astype(x_ref.dtype)
    logits_RC, column_RC = _logits(x_ref[...], head_CD, pl.program_id(0), vocab)
    p_RC = jnp.exp(logits_RC - lse_ref[...])
    # Step 2: the gradient of the logits, (p - [v = target]) x weight.
    is_target_RC = (column_RC == targets_ref[...]).astype(jnp.float32)
    d_RC = (p_RC - is_target_RC) * weights_ref[...]

    # Step 3: dhead += d^T x, in fp32 because it sums over all tokens. The first token block clears
    # the sum.
    @pl.when(pl.program_id(1) == 0)
    def _():
        dhead_ref[...] = jnp.zeros_like(dhead_ref)

    dhead_ref[...] += matmul(d_RC.astype(x_ref.dtype), x_ref[...], CONTRACT_ROWS)


def _head_gradient(x_TD, head_VD, targets_T1, lse_T1, weights_T1, *, sizes: BlockSizes, interpret):
    """Returns fp32 dhead_VD.

    Args:
      x_TD, head_VD, targets_T1, sizes, interpret: as in `_forward`.
      lse_T1: fp32 log-sum-exp over the full vocabulary.
      weights_T1: fp32 weight of each token's loss, 0 in padding.
    """
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
            # The token blocks of a vocabulary block add to one output, so one core runs them in
            # order. Vocabulary blocks are independent: a chip with two cores may split them.
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes,
        ),
        interpret=interpret,
        name="cross_entropy_head",
    )(x_TD, head_VD, targets_T1, lse_T1, weights_T1)


def _blocks(x_TD, head_DV, targets_T, sizes):
    """Returns the block sizes and the kernels' inputs: padded x_TD, head_VD, and targets_T1."""
    T, V = len(x_TD), head_DV.shape[1]
    itemsizes = x_TD.dtype.itemsize, head_DV.dtype.itemsize
    sizes = sizes or choose(T, V, x_TD.shape[1], *itemsizes)
    padding = (0, -T % sizes.tokens), (0, 0)
    # A target past V is in another shard. It must not match an extra column of the last block, so
    # it becomes -1, which matches no column.
    targets_T = jnp.where(targets_T < V, targets_T, -1)
    targets_T1 = jnp.pad(targets_T[:, None], padding, constant_values=-1)
    return sizes, (jnp.pad(x_TD, padding), head_DV.T, targets_T1)


def losses(x_TD, head_DV, targets_T, axes, *, sizes=None, interpret=None) -> jax.Array:
    """Returns fp32 losses_T in nats, as `xla.losses` does.

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
    """Returns lse_T, losses_T and dx_TD; takes the arguments of `losses_and_gradients`."""
    T = len(x_TD)
    sizes, arrays = _blocks(x_TD, head_DV, targets_T, sizes)
    kernel = functools.partial(_forward, sizes=sizes, gradients=True)
    outputs = run_kernel(kernel, *arrays, interpret=interpret)
    shard_lse_T1, shard_target_T1, others_TD = (a[:T] for a in outputs)
    lse_T, target_T = over_shards(shard_lse_T1[:, 0], shard_target_T1[:, 0], axes)
    # The target's part of dx, (p - 1) x its column of the head, if this shard has it. For a token
    # that the model predicts well p is near 1: expm1 keeps the digits that p - 1 would lose.
    index_T = jnp.clip(targets_T, 0, head_DV.shape[1] - 1)
    column_TD = jnp.where((index_T == targets_T)[:, None], head_DV.T[index_T], 0)
    p_minus_1_T = jnp.expm1(target_T - lse_T)
    # The kernel divided by the sum over this shard; this rescales to the sum over all shards.
    others_TD = others_TD * jnp.exp(shard_lse_T1 - lse_T[:, None])
    dx_TD = others_TD + column_TD * p_minus_1_T[:, None]
    if axes:
        dx_TD = jax.lax.psum(dx_TD, axes)
    return lse_T, lse_T - target_T, (dx_TD * weights_T[:, None]).astype(x_TD.dtype)


def losses_and_gradients(x_TD, head_DV, targets_T, weights_T, axes, *, sizes=None, interpret=None):
    """Computes the losses and the gradients of their weighted sum.

    Args:
      x_TD, head_DV, targets_T, weights_T, axes: as in `xla.losses_and_gradients`.
      sizes, interpret: as in `losses`.

    Returns:
      losses_T in fp32, dx_TD in x's dtype, dhead_DV in fp32.
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
