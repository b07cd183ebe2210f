"""The loss of a batch: cross-entropy in fp32, summed over its tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from codellama_jax.models.family import output_head
from kernels.cross_entropy import cross_entropy, token_losses


def layout() -> dict[str, jax.sharding.PartitionSpec]:
    """How the current mesh splits tokens (B, T) and the head (D, V)."""
    return {
        "tokens": nn.logical_to_mesh_axes(("batch", "length")),
        "head": nn.logical_to_mesh_axes(("embed", "vocab")),
    }


def summed_loss(
    model: nn.Module, params: dict, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the losses of a batch's tokens, padding left out, and how many tokens that is."""
    x_BTD, _ = model.apply(
        {"params": params},
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        method="hidden",
    )
    weights_BT = (batch["segment_ids"] > 0).astype(jnp.float32)
    return cross_entropy(
        x_BTD, output_head(params), batch["targets"], weights_BT, **layout()
    ), jnp.sum(weights_BT)


def losses_of_tokens(
    model: nn.Module, params: dict, tokens_BT: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    """Returns -log p(target) in nats of every token of rows that are one document each, fp32 (B, T); it has no gradient."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    x_BTD, _ = model.apply({"params": params}, tokens_BT, positions_BT, method="hidden")
    return token_losses(x_BTD, output_head(params), targets_BT, **layout())
