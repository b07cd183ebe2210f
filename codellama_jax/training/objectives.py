"""The loss of a batch: cross-entropy in fp32, summed over its tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from codellama_jax.models.llama.model import Llama
from codellama_jax.sharding.mesh import loss_specs
from kernels.cross_entropy import cross_entropy


def summed_loss(
    model: Llama, params: dict, batch: dict[str, jax.Array]
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
        x_BTD, params["head"], batch["targets"], weights_BT, **loss_specs()
    ), jnp.sum(weights_BT)
