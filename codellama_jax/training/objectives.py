"""The objectives that a stage can train on.

To add one, write a function with the signature of `next_token`, register it in OBJECTIVES, and add
its name to `Stage.objective`. The loss weights come from the encoder of the documents
(data/pipeline.py): an objective that learns from only some of the tokens gives the others weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from codellama_jax.models.family import output_head
from codellama_jax.sharding.mesh import loss_specs
from kernels.cross_entropy import cross_entropy


def next_token(
    model: nn.Module, params: dict, batch: dict[str, jax.Array], key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sum of the cross-entropies in nats, and the sum of the weights.

    Both are fp32 scalars. Sums and not means are returned, so that micro-batches and hosts with
    different numbers of tokens can be added up before dividing.

    Args:
      model: the module.
      params: its parameters.
      batch: arrays (B, T): int32 `tokens`, `targets`, `segment_ids` and `positions`, and float32
        `weights`, which are 0 in padding. With a key also int32 `sequences` (B,), the number of
        each sequence in the global batch.
      key: for dropout; None drops nothing.
    """
    arrays = [batch["tokens"], batch["positions"], batch["segment_ids"]]
    rngs = None
    if key is not None:
        arrays.append(batch["sequences"])
        rngs = {"dropout": key}
    x_BTD: Any = model.apply({"params": params}, *arrays, method="hidden", rngs=rngs)
    weights_BT, head_DV = batch["weights"], output_head(params)
    # The kernel multiplies with the head itself: the logits of all tokens are never in memory.
    loss = cross_entropy(x_BTD, head_DV, batch["targets"], weights_BT, **loss_specs())
    return loss, jnp.sum(weights_BT)


# By `Stage.objective`.
OBJECTIVES: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {"next_token": next_token}
