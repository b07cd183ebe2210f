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
from codellama_jax.models.quantized import Quantized, is_quantized
from kernels import int8
from kernels.decode_attention import decode_attention

Tree = TypeVar("Tree")


@struct.dataclass
class Int8Slots:
    """Keys or values of a layer as int8 with one scale per key head and token."""

    values_MSH: jax.Array
    scales_MS: jax.Array

    @classmethod
    def of(cls, a_MSH: jax.Array) -> Int8Slots:
        """Quantizes keys or values by the largest magnitude of each head and token."""
        values_HMS, scales_MS = int8.quantize_columns(jnp.moveaxis(a_MSH, -1, 0))
        return cls(jnp.moveaxis(values_HMS, 0, -1), scales_MS)


Slots = jax.Array | Int8Slots
# How decoding stores keys and values: in the compute dtype, or quantized.
KV_CACHES = {"none": lambda a_MSH: a_MSH, "int8": Int8Slots.of}


@struct.dataclass
class Cache:
    """Keys and values, one array, or an `Int8Slots`, per layer.

    Slot s of a sequence holds position s; slots after the sequence's last token are undefined. Key
    heads and sequences are one dim M: with two dims XLA's CPU backend would copy the caches of a
    single sequence at every step.
    """

    k_MSH: tuple[Slots, ...]
    v_MSH: tuple[Slots, ...]


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


def append(config: ModelConfig, slots: Slots, new_MH: jax.Array, slot_M: jax.Array) -> Slots:
    """Writes the key or value of one more token per sequence into its slot."""
    head_M = jnp.arange(len(new_MH))

    def write(a_MS: jax.Array, new_M: jax.Array) -> jax.Array:
        # Unique indices let XLA write in place, in any order.
        return a_MS.at[head_M, slot_M].set(new_M, unique_indices=True)

    if isinstance(slots, Int8Slots):
        new = Int8Slots.of(new_MH)
        slots = jax.tree.map(write, slots, new)
    else:
        slots = write(slots, new_MH)
    return constrain(slots, cache_spec(config))


def attend(
    config: ModelConfig, q_MGH: jax.Array, keys: Slots, values: Slots, lengths_B: jax.Array
) -> jax.Array:
    """Returns out_MGH of one query per sequence to the filled slots of its cache."""
    head_axes = mesh_axes("heads", config.n_kv_heads)
    scales_MS = None
    if isinstance(keys, Int8Slots) and isinstance(values, Int8Slots):
        scales_MS = keys.scales_MS, values.scales_MS
        keys, values = keys.values_MSH, values.values_MSH
    assert isinstance(keys, jax.Array) and isinstance(values, jax.Array)
    arrays = q_MGH, keys, values, lengths_B
    return decode_attention(*arrays, scales_MS=scales_MS, head_axes=head_axes)


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
    weights, specs = family.prepare(config, params), family.weight_specs(config)

    def specs_of(weight: Any, spec: PartitionSpec) -> Any:
        return weight.specs(spec) if isinstance(weight, Quantized) else spec

    return constrain(weights, jax.tree.map(specs_of, weights, specs, is_leaf=is_quantized))


def prefill(
    config: ModelConfig,
    weights: Any,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    new_slots: int,
    kv_cache: str = "none",
) -> tuple[jax.Array, Cache]:
    """Reads prompts; returns fp32 logits_BV after each, and a cache.

    Args:
      config: the model.
      weights: as `prepare` returned them.
      tokens_BT: the prompts, padded on the right to T.
      lengths_B: their lengths in tokens, at least 1.
      new_slots: room in the cache for this many more tokens.
      kv_cache: a key of `KV_CACHES`.
    """
    logits_BV, layers = family_of(config).prefill(config, weights, tokens_BT, lengths_B)

    def to_slots(a_BTKH: jax.Array) -> Slots:
        _, T, _, H = a_BTKH.shape
        a_MSH = jnp.einsum("BTKH->KBTH", a_BTKH).reshape(-1, T, H)
        return KV_CACHES[kv_cache](jnp.pad(a_MSH, ((0, 0), (0, new_slots), (0, 0))))

    keys, values = zip(*layers)
    cache = Cache(tuple(map(to_slots, keys)), tuple(map(to_slots, values)))
    return logits_BV, constrain(cache, cache_spec(config))
