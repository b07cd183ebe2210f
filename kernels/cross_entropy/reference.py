"""The tests' oracle: all logits at once, in the dtype of the inputs but at least in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_losses(x_BTD, head_DV, targets_BT) -> jax.Array:
    """Returns losses_BT as `api.token_losses` does."""
    dtype = jnp.promote_types(x_BTD.dtype, jnp.float32)
    logits_BTV = jnp.einsum("BTD,DV->BTV", x_BTD.astype(dtype), head_DV.astype(dtype))
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT


def cross_entropy(x_BTD, head_DV, targets_BT, weights_BT) -> jax.Array:
    """Returns the weighted sum of the losses as `api.cross_entropy` does."""
    return jnp.sum(token_losses(x_BTD, head_DV, targets_BT) * weights_BT)
