"""One forward pass over whole prompts: what a model says at their ends."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from codellama_jax.config import ModelConfig
from codellama_jax.generation.sampler import bucket
from codellama_jax.models.family import family_of
from codellama_jax.models.trained import Run

TOKENS = 16_384  # read at once, in at most
ROWS = 64  # rows: what bounds the memory


def last_logits(run: Run, prompts: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """Returns fp32 logits_BMV after all but the last m = 0, 1, ..., count - 1 ids of each prompt."""
    length = bucket(max(map(len, prompts)))
    rows = min(1 << (len(prompts) - 1).bit_length(), max(1, TOKENS // length), ROWS)
    parts = []
    for start in range(0, len(prompts), rows):
        tokens_BT, ends_B = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
        for row, ids in enumerate(prompts[start : start + rows]):
            tokens_BT[row, : len(ids)], ends_B[row] = ids, len(ids) - 1
        part = _last_logits(run.model, count, run.params, tokens_BT, ends_B)
        parts.append(
            np.asarray(
                part
                if part.is_fully_addressable
                else multihost_utils.process_allgather(part, tiled=True)
            )
        )
    return np.concatenate(parts)[: len(prompts)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _last_logits(
    config: ModelConfig, count: int, params: dict, tokens_BT: jax.Array, ends_B: jax.Array
) -> jax.Array:
    model, positions_BT = (
        family_of(config).module(config),
        jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape),
    )
    x_BTD, _ = model.apply({"params": params}, tokens_BT, positions_BT, method="hidden")
    at_BM = jnp.maximum(ends_B[:, None] - jnp.arange(count)[None], 0)
    x_BMD = jnp.take_along_axis(x_BTD, at_BM[:, :, None], axis=1)
    return model.apply({"params": params}, x_BMD, method="unembed")
