"""The parts of decoding that model families share: the KV cache, shardings, prefill.

Dims: those of `models/layers.py`, and S slots of the cache, M = K B key heads of all sequences.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from codellama_jax.config import ModelConfig
from codellama_jax.models.family import family_of
from codellama_jax.models.layers import mesh_axes

Tree = TypeVar("Tree")


@struct.dataclass
class Cache:
    """Keys and values, one array per layer.

    Slot s of a sequence holds position s; slots after the sequence's last token are undefined. Key
    heads and sequences are one dim M: with two dims XLA's CPU backend would copy the caches of a
    single sequence at every step.
    """

    k_MSH: tuple[jax.Array, ...]
    v_MSH: tuple[jax.Array, ...]


# How decoding shards over the mesh axes of `sharding/mesh.py`. Sequences are sharded over `data`
# alone: along fsdp and tensor every device multiplies its shard of the weights with every sequence,
# so that no device ever gathers weights.
LOGICAL_AXES = (("batch", "data"), ("heads", "tensor"), ("ffn", "tensor"), ("vocab", "tensor"))
REPLICATED = PartitionSpec()
BY_OUTPUTS, BY_INPUTS = PartitionSpec("tensor", "fsdp"), PartitionSpec("fsdp", "tensor")


def cache_spec(config: ModelConfig) -> PartitionSpec:
    """Returns how a cache is sharded: by key heads over `tensor` where it divides them."""
    heads = mesh_axes("heads", config.n_kv_heads)
    return PartitionSpec((*heads, "data"), "context")


def constrain(tree: Tree, specs: Any) -> Tree:
    """Shards arrays over the mesh in use; without a mesh of several devices it does nothing."""
    if jax.sharding.get_abstract_mesh().size > 1:
        return jax.lax.with_sharding_constraint(tree, specs)
    return tree


def for_decoding(config: ModelConfig) -> ModelConfig:
    """Returns the config to generate with.

    Nothing is rematerialised, and a CPU computes in fp32, its fastest dtype.
    """
    on_cpu = jax.default_backend() == "cpu"
    compute_dtype = "float32" if on_cpu else config.compute_dtype
    return dataclasses.replace(config, remat="none", compute_dtype=compute_dtype)


def last_tokens(x_BTD: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Returns the activations x_DB of the last token of each prompt, as columns.

    Logits of every position would take T x V floats, and only the next token is wanted.
    """
    ends_B11 = lengths_B[:, None, None] - 1
    return jnp.take_along_axis(x_BTD, ends_B11, axis=1)[:, 0].T


def logits_of(head_VD: jax.Array, x_DB: jax.Array) -> jax.Array:
    """Returns fp32 logits_BV of columns of activations."""
    logits_VB = jnp.matmul(head_VD, x_DB, preferred_element_type=jnp.float32)
    # The barrier keeps XLA from folding the transpose into the matmul, which would then run in the
    # slower orientation.
    return jax.lax.optimization_barrier(logits_VB).T


@functools.partial(jax.jit, static_argnums=0)
def prepare(config: ModelConfig, params: dict) -> Any:
    """Returns the weights of the family's `prefill` and `step`, sharded over the mesh in use."""
    family = family_of(config)
    return constrain(family.prepare(config, params), family.weight_specs(config))


def prefill(
    config: ModelConfig, weights: Any, tokens_BT: jax.Array, lengths_B: jax.Array, new_slots: int
) -> tuple[jax.Array, Cache]:
    """Reads prompts; returns fp32 logits_BV after each, and a cache.

    Args:
      config: the model.
      weights: as `prepare` returned them.
      tokens_BT: the prompts, padded on the right to T.
      lengths_B: their lengths in tokens, at least 1.
      new_slots: room in the cache for this many more tokens.
    """
    logits_BV, layers = family_of(config).prefill(config, weights, tokens_BT, lengths_B)

    def to_slots(a_BTKH: jax.Array) -> jax.Array:
        _, T, _, H = a_BTKH.shape
        a_MSH = jnp.einsum("BTKH->KBTH", a_BTKH).reshape(-1, T, H)
        return jnp.pad(a_MSH, ((0, 0), (0, new_slots), (0, 0)))

    keys, values = zip(*layers)
    cache = Cache(tuple(map(to_slots, keys)), tuple(map(to_slots, values)))
    return logits_BV, constrain(cache, cache_spec(config))
