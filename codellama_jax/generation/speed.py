"""Memory and speed of decoding, to compare models with each other."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from codellama_jax.generation.sampler import generate
from codellama_jax.generation.settings import Sampling
from codellama_jax.models import decoding
from codellama_jax.models.family import family_of
from codellama_jax.models.trained import TrainedModel

PROMPT = 32  # tokens
NEW = 96  # tokens; a prompt and its answer fit the shortest sequences that models are trained on
ROUNDS = 5


def weight_bytes(model: TrainedModel) -> int:
    """Returns the bytes of the weights that decoding reads, embedding and head included."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.decoding_weights))


def cache_bytes(model: TrainedModel) -> int:
    """Returns the bytes of keys and values of one token in all layers."""
    config = decoding.for_decoding(model.config)
    # One position of one sequence; eval_shape also counts the scales of an int8 cache.
    shape = config.n_kv_heads, 1, config.head_dim
    keys_MSH = jax.ShapeDtypeStruct(shape, jnp.dtype(config.compute_dtype))
    slots = jax.eval_shape(decoding.KV_CACHES[model.kv_cache], keys_MSH)
    layers = 2 * family_of(config).attention_layers(config)  # keys and values
    return layers * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(slots))


def decoding_speeds(models: Mapping[str, TrainedModel]) -> dict[str, float]:
    """Returns the tokens per second of each model: the median of 5 greedy continuations.

    One sequence at a time, prompt included. The models decode alternately, so that a change in the
    load of the machine is not taken for a difference between them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    # Without stop ids, so that every model decodes exactly NEW tokens.
    sampling = Sampling(max_new_tokens=NEW)
    for number in range(ROUNDS + 1):
        for name, model in models.items():
            start = time.perf_counter()
            generate(model, [[1] * PROMPT], sampling)
            # The first round compiles.
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: NEW / float(np.median(times)) for name, times in seconds.items()}
