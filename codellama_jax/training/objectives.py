"""The objectives that a stage can train on.

To add one, write a function with the signature of `next_token`, register it in OBJECTIVES, and add
its name to `Stage.objective`. The loss weights come from the encoder of the documents
(data/pipeline.py): an objective that learns from some of the tokens only gives the others weight 0.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from codellama_jax.models.family import output_head
from codellama_jax.sharding.mesh import loss_specs
from kernels.cross_entropy import cross_entropy


def next_token(
    model: nn.Module, params: dict, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sum of the cross-entropies of a batch's tokens, and that of the weights.

    Args:
      model: the module.
      params: its parameters.
      batch: arrays [B, T]: int32 `tokens`, `targets`, `segment_ids` and `positions`, and float32
        `weights`, which are 0 in padding.
    """
    x_BTD = model.apply(
        {"params": params},
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        method="hidden",
    )
    weights_BT, head_DV = batch["weights"], output_head(params)
    loss = cross_entropy(x_BTD, head_DV, batch["targets"], weights_BT, **loss_specs())
    return loss, jnp.sum(weights_BT)


OBJECTIVES: dict[str, Callable] = {"next_token": next_token}  # by Stage.objective
