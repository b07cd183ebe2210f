"""Cross-entropy for any backend: a chunk of tokens at a time.

The gradients of a chunk are computed while its logits exist, so the backward pass does not compute
the logits again. Tokens come before vocabulary (TV): on a CPU the softmax of that layout, written
out as below, trains 1.6 to 2 times faster than the gradient that JAX derives.

Both functions work on one device's shard of the vocabulary. A target that is not in the shard has
an index outside of [0, V).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.tpu import ceil_div

CHUNK = 1024  # tokens whose logits are in memory at once


def over_shards(
    lse_T: jax.Array, target_T: jax.Array, axes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """Combines the log-sum-exp and the target's logit of the shards of the vocabulary."""
    if not axes:
        return lse_T, target_T
    largest_T = jax.lax.pmax(lse_T, axes)
    total_T = jax.lax.psum(jnp.exp(lse_T - largest_T), axes)
    return largest_T + jnp.log(total_T), jax.lax.psum(target_T, axes)


def _softmax(x_TD, head_DV, targets_T, axes):
    """Returns e_TV and scale_T, whose product is the softmax, and losses_T."""
    logits_TV = jnp.matmul(x_TD, head_DV, preferred_element_type=jnp.float32)
    largest_T = logits_TV.max(axis=1)
    e_TV = jnp.exp(logits_TV - largest_T[:, None])
    # A target in another shard contributes 0 here; `over_shards` adds the shards.
    index_T = jnp.clip(targets_T, 0, logits_TV.shape[1] - 1)
    logit_T = jnp.take_along_axis(logits_TV, index_T[:, None], axis=1)[:, 0]
    target_T = jnp.where(index_T == targets_T, logit_T, 0)
    lse_T, target_T = over_shards(largest_T + jnp.log(e_TV.sum(axis=1)), target_T, axes)
    return e_TV, jnp.exp(largest_T - lse_T), lse_T - target_T


def chunks(most: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Splits the tokens into equal chunks of at most `most`; zeros fill the last one."""
    tokens = len(arrays[0])
    count = ceil_div(tokens, most)
    size = ceil_div(tokens, count)
    chunked = []
    for array in arrays:
        padding = ((0, count * size - tokens), *[(0, 0)] * (array.ndim - 1))
        chunked.append(jnp.pad(array, padding).reshape(count, size, *array.shape[1:]))
    return tuple(chunked)


def losses(x_TD, head_DV, targets_T, axes) -> jax.Array:
    """Returns losses_T, fp32.

    Args:
      x_TD, head_DV: activations and this shard of the head.
      targets_T: columns of this shard; any other number where the target is in another shard.
      axes: axes of the mesh that shard the vocabulary.
    """
    head_DV = head_DV.astype(x_TD.dtype)

    def chunk(part):
        x_TD, targets_T = part
        return _softmax(x_TD, head_DV, targets_T, axes)[2]

    losses_CT = jax.lax.map(chunk, chunks(CHUNK, x_TD, targets_T))
    return losses_CT.reshape(-1)[: len(x_TD)]


def losses_and_gradients(
    x_TD, head_DV, targets_T, weights_T, axes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns losses_T, and dx_TD and dhead_DV, the gradients of their weighted sum.

    Args:
      x_TD, head_DV, targets_T, axes: as in `losses`.
      weights_T: fp32 weight of each token's loss.

    Returns:
      losses_T in fp32, dx_TD in x's dtype, dhead_DV in fp32.
    """

    def chunk(dhead_DV, part):
        x_TD, targets_T, weights_T = part
        e_TV, scale_T, losses_T = _softmax(x_TD, head_DV, targets_T, axes)
        is_target_TV = jnp.arange(e_TV.shape[1])[None] == targets_T[:, None]
        d_TV = e_TV * (scale_T * weights_T)[:, None]
        d_TV = (d_TV - jnp.where(is_target_TV, weights_T[:, None], 0)).astype(x_TD.dtype)
        dx_TD = jnp.matmul(d_TV, head_DV.T, preferred_element_type=jnp.float32)
        if axes:
            dx_TD = jax.lax.psum(dx_TD, axes)
        dhead_DV += jnp.matmul(x_TD.T, d_TV, preferred_element_type=jnp.float32)
        return dhead_DV, (losses_T, dx_TD.astype(x_TD.dtype))

    T, D = x_TD.shape
    head_DV = head_DV.astype(x_TD.dtype)
    zero_DV = jnp.zeros(head_DV.shape, jnp.float32)
    parts = chunks(CHUNK, x_TD, targets_T, weights_T)
    dhead_DV, (losses_CT, dx_CTD) = jax.lax.scan(chunk, zero_DV, parts)
    return losses_CT.reshape(-1)[:T], dx_CTD.reshape(-1, D)[:T], dhead_DV
