"""Cross-entropy for any backend: a chunk of tokens at a time, whose gradients are computed while its logits are at hand.

So the logits are computed once, not again in the backward pass. Tokens stand before words (TV): on a CPU the softmax of
that layout, written out as below, trains 1.6 to 2 times faster than the gradient that JAX derives.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

CHUNK = 1024  # tokens whose logits are held at once
MASKED = -1e30  # a logit that is none; finite, so that a shard of nothing but padding stays finite


def over_shards(
    lse_T: jax.Array, target_T: jax.Array, axes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """Joins the log-sum-exp and the target's logit of the parts of the vocabulary that lie along `axes`."""
    if not axes:
        return lse_T, target_T
    largest_T = jax.lax.pmax(lse_T, axes)
    return largest_T + jnp.log(jax.lax.psum(jnp.exp(lse_T - largest_T), axes)), jax.lax.psum(
        target_T, axes
    )


def _softmax(x_TD, head_DV, targets_T, words, axes):
    """Returns e_TV and scale_T, whose product is the softmax, and losses_T."""
    logits_TV = jnp.matmul(x_TD, head_DV, preferred_element_type=jnp.float32)
    if words is not None:
        logits_TV = jnp.where(jnp.arange(logits_TV.shape[1])[None] < words, logits_TV, MASKED)
    largest_T = logits_TV.max(axis=1)
    e_TV = jnp.exp(logits_TV - largest_T[:, None])
    at_T = jnp.clip(targets_T, 0, logits_TV.shape[1] - 1)
    target_T = jnp.where(
        at_T == targets_T, jnp.take_along_axis(logits_TV, at_T[:, None], axis=1)[:, 0], 0
    )
    lse_T, target_T = over_shards(largest_T + jnp.log(e_TV.sum(axis=1)), target_T, axes)
    return e_TV, jnp.exp(largest_T - lse_T), lse_T - target_T


def chunks(most: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Cuts the tokens into equal chunks of at most `most`, the last one filled up with zeros."""
    count = -(-len(arrays[0]) // most)
    size = -(-len(arrays[0]) // count)
    pad = lambda a: jnp.pad(a, ((0, count * size - len(a)), *[(0, 0)] * (a.ndim - 1)))
    return tuple(pad(a).reshape(count, size, *a.shape[1:]) for a in arrays)


def losses(x_TD, head_DV, targets_T, words, axes) -> jax.Array:
    """Returns losses_T, fp32.

    Args:
      targets_T: rows of this part of the head; any other number where the target is in another part.
      words: rows from there on are none; None if all are.
      axes: of the mesh, along which the parts of the vocabulary lie.
    """
    head_DV = head_DV.astype(x_TD.dtype)
    parts = jax.lax.map(
        lambda part: _softmax(part[0], head_DV, part[1], words, axes)[2],
        chunks(CHUNK, x_TD, targets_T),
    )
    return parts.reshape(-1)[: len(x_TD)]


def losses_and_gradients(
    x_TD, head_DV, targets_T, weights_T, words, axes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns losses_T, and the gradients of their weighted sum: dx_TD in x's dtype, dhead_DV in fp32. Arguments: `losses`."""

    def chunk(dhead_DV, part):
        x_TD, targets_T, weights_T = part
        e_TV, scale_T, losses_T = _softmax(x_TD, head_DV, targets_T, words, axes)
        hit_TV = jnp.arange(e_TV.shape[1])[None] == targets_T[:, None]
        d_TV = e_TV * (scale_T * weights_T)[:, None] - jnp.where(hit_TV, weights_T[:, None], 0)
        d_TV = d_TV.astype(x_TD.dtype)
        dx_TD = jnp.matmul(d_TV, head_DV.T, preferred_element_type=jnp.float32)
        dx_TD = (jax.lax.psum(dx_TD, axes) if axes else dx_TD).astype(x_TD.dtype)
        return dhead_DV + jnp.matmul(x_TD.T, d_TV, preferred_element_type=jnp.float32), (
            losses_T,
            dx_TD,
        )

    T, D = x_TD.shape
    head_DV = head_DV.astype(x_TD.dtype)
    zero_DV = jnp.zeros(head_DV.shape, jnp.float32)
    dhead_DV, (losses_CT, dx_CTD) = jax.lax.scan(
        chunk, zero_DV, chunks(CHUNK, x_TD, targets_T, weights_T)
    )
    return losses_CT.reshape(-1)[:T], dx_CTD.reshape(-1, D)[:T], dhead_DV
