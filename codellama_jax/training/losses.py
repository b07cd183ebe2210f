"""Cross-entropy in fp32, summed over tokens, a part of each row at a time so that (tokens x vocabulary) logits are never whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from codellama_jax.models.layers import length_shards
from codellama_jax.models.llama import Llama

CHUNK = 1024  # tokens of a row whose logits are held at once


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns -log p(target) in nats, fp32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT


def summed_loss(model: Llama, params: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the losses of a batch's tokens, padding left out, and how many tokens that is."""
    x_BTD, _ = model.apply({"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"], method="hidden")
    weights_BT = (batch["segment_ids"] > 0).astype(jnp.float32)

    def chunk_loss(x_BTD, targets_BT, weights_BT):
        logits_BTV = model.apply({"params": params}, x_BTD, method="unembed")
        return jnp.sum(token_losses(logits_BTV, targets_BT) * weights_BT)

    chunks = 1 if length_shards() > 1 else _chunks(x_BTD.shape[1])
    if chunks == 1:
        return chunk_loss(x_BTD, batch["targets"], weights_BT), jnp.sum(weights_BT)
    split = lambda a: a.reshape(a.shape[0], chunks, -1, *a.shape[2:]).swapaxes(0, 1)
    losses = jax.lax.map(lambda part: jax.checkpoint(chunk_loss)(*part), tuple(map(split, (x_BTD, batch["targets"], weights_BT))))
    return jnp.sum(losses), jnp.sum(weights_BT)


def _chunks(length: int) -> int:
    """The fewest equal parts of at most CHUNK tokens."""
    return next(n for n in range(-(-length // CHUNK), length + 1) if length % n == 0)
