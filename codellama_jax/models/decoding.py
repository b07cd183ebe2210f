"""The parts of decoding that model families share: the KV cache, shardings, prefill, extend.

Dims: those of `models/layers.py`, and S slots of the cache, M = K B key heads of all sequences; R
sequences that are read, of T tokens each, as N = R T columns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from codellama_jax.config import ModelConfig
from codellama_jax.models.family import family_of
from codellama_jax.models.layers import mesh_axes
from codellama_jax.models.quantized import Quantized, at_least_two_columns, is_quantized
from kernels import int8
from kernels.decode_attention import decode_attention, extend_attention

Tree = TypeVar("Tree")


@struct.dataclass
class Int8Slots:
    """Keys or values of a layer as int8 with one scale per key head and token."""

    values_MSH: jax.Array
    scales_MS: jax.Array

    @classmethod
    def of(cls, a_MSH: jax.Array) -> Int8Slots:
        """Quantizes keys or values by the largest magnitude of each head and token."""
        # One scale per head and token: a new token never changes the scale of earlier ones, so the
        # cache is only appended to.
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


def rows_of(config: ModelConfig, sequences: int, slots_R: jax.Array) -> jax.Array:
    """Returns the rows of the cache that hold the key heads of some sequences, head by head.

    For a sequence that does not exist they are rows that do not exist, all of them different.

    Args:
      config: the model.
      sequences: B of the cache.
      slots_R: which sequences; B or more for those that only pad the list.
    """
    heads = config.n_kv_heads
    rows_KR = jnp.arange(heads)[:, None] * sequences + slots_R[None]
    # Past the end of the cache, so that mode="drop" ignores writes to them; all different, because
    # `unique_indices` promises so and equal ones would be undefined behaviour.
    missing_KR = heads * sequences + jnp.arange(rows_KR.size).reshape(rows_KR.shape)
    return jnp.where(slots_R[None] < sequences, rows_KR, missing_KR).ravel()


@struct.dataclass
class Columns:
    """New tokens of sequences in a cache: their activations are the columns of x_DN.

    `step` reads one token per sequence, `extend` several. Both write keys and values with `append`,
    and then let the queries `attend` to what the cache stores, rounded where that is int8.

    Attributes:
      positions_RT: of the tokens, int32. Beyond the cache nothing is written.
      slots_R: the sequences, as `rows_of` takes them; None for all of them, in order.
    """

    positions_RT: jax.Array
    slots_R: jax.Array | None = None

    def append(self, config: ModelConfig, slots: Slots, new_KHN: jax.Array) -> Slots:
        """Returns the slots of a layer with new keys or values."""
        K, H, _ = new_KHN.shape
        R, T = self.positions_RT.shape
        # Activations are columns with the head dim in the middle; a cache row is one head of one
        # sequence, with positions, then the head dim.
        new_NTH = jnp.einsum("KHRT->KRTH", new_KHN.reshape(K, H, R, T)).reshape(K * R, T, H)
        # Rows run over heads first and sequences second, as in `rows_of`.
        positions_NT = jnp.tile(self.positions_RT, (K, 1))
        rows_N = jnp.arange(K * R) if self.slots_R is None else self._rows(config, slots)
        if T == 1:
            # One index per row: XLA's fastest form of a decoding step.
            new_NTH, positions_NT = new_NTH[:, 0], positions_NT[:, 0]
        else:
            rows_N = rows_N[:, None]

        def write(a_MS: jax.Array, new_NT: jax.Array) -> jax.Array:
            # Unique indices let XLA write in place, in any order.
            return a_MS.at[rows_N, positions_NT].set(new_NT, mode="drop", unique_indices=True)

        if isinstance(slots, Int8Slots):
            slots = jax.tree.map(write, slots, Int8Slots.of(new_NTH))
        else:
            slots = write(slots, new_NTH)
        return constrain(slots, cache_spec(config))

    def attend(
        self, config: ModelConfig, q_KGHN: jax.Array, keys: Slots, values: Slots
    ) -> jax.Array:
        """Returns out_XN, X = K G H: each query's attention to the slots up to its position."""
        K, G, H, _ = q_KGHN.shape
        R, T = self.positions_RT.shape
        head_axes = mesh_axes("heads", config.n_kv_heads)
        rows_N = None if self.slots_R is None else self._rows(config, keys)
        scales_MS = None
        if isinstance(keys, Int8Slots) and isinstance(values, Int8Slots):
            scales_MS = keys.scales_MS, values.scales_MS
            keys, values = keys.values_MSH, values.values_MSH
        assert isinstance(keys, jax.Array) and isinstance(values, jax.Array)
        # A plain decoding step: one query per sequence and all sequences of the cache.
        if T == 1 and rows_N is None:
            q_MGH = jnp.einsum("KGHB->KBGH", q_KGHN).reshape(K * R, G, H)
            arrays = q_MGH, keys, values, self.positions_RT[:, 0] + 1
            out_MGH = decode_attention(*arrays, scales_MS=scales_MS, head_axes=head_axes)
            out_KBGH = out_MGH.reshape(K, R, G, H)
            return jnp.einsum("KBGH->KGHB", out_KBGH).reshape(-1, R)
        q_KRTGH = jnp.einsum("KGHRT->KRTGH", q_KGHN.reshape(K, G, H, R, T))
        out_NTGH = extend_attention(
            q_KRTGH.reshape(K * R, T, G, H),
            keys,
            values,
            jnp.tile(self.positions_RT, (K, 1)),
            rows_N=rows_N,
            scales_MS=scales_MS,
            is_split=jax.sharding.get_abstract_mesh().shape.get("context", 1) > 1,
        )
        out_KRTGH = out_NTGH.reshape(K, R, T, G, H)
        return jnp.einsum("KRTGH->KGHRT", out_KRTGH).reshape(-1, R * T)

    def _rows(self, config: ModelConfig, slots: Slots) -> jax.Array:
        assert self.slots_R is not None
        heads = jax.tree.leaves(slots)[0].shape[0]
        return rows_of(config, heads // config.n_kv_heads, self.slots_R)

    @property
    def positions_N(self) -> jax.Array:
        """Positions of the columns."""
        return self.positions_RT.ravel()


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


def last_columns(x_DN: jax.Array, lengths_R: jax.Array) -> jax.Array:
    """Returns the activations x_DR of the last of each sequence's columns.

    Padding follows the `lengths_R` tokens of a sequence, at least 1.
    """
    R = len(lengths_R)
    return x_DN[:, jnp.arange(R) * (x_DN.shape[1] // R) + lengths_R - 1]


def extended(
    read: Callable[[jax.Array, Columns], tuple[jax.Array, Cache]],
    unembed: Callable[[jax.Array], jax.Array],
    tokens_RT: jax.Array,
    starts_R: jax.Array,
    lengths_R: jax.Array | None,
    slots_R: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    """Returns what `family.Family.extend` does, by the parts of a family's `step`.

    Args:
      read: from tokens_N and their columns to the last activations x_DN, and the cache.
      unembed: from activations x_DN to fp32 logits_NV.
      tokens_RT, starts_R, lengths_R, slots_R: as in `family.Family.extend`.
    """
    R, T = tokens_RT.shape
    columns = Columns(starts_R[:, None] + jnp.arange(T)[None], slots_R)
    x_DN, cache = read(tokens_RT.ravel(), columns)
    if lengths_R is not None:
        return unembed(last_columns(x_DN, lengths_R)), cache
    return unembed(x_DN).reshape(R, T, -1), cache


def logits_of(head_VD: jax.Array, x_DB: jax.Array) -> jax.Array:
    """Returns fp32 logits_BV of columns of activations."""
    B, x_DB = x_DB.shape[1], at_least_two_columns(x_DB)
    logits_VB = jnp.matmul(head_VD, x_DB, preferred_element_type=jnp.float32)
    # The barrier keeps XLA from folding the transpose into the matmul, which would then run in the
    # slower orientation.
    return jax.lax.optimization_barrier(logits_VB).T[:B]


@functools.partial(jax.jit, static_argnums=0)
def prepare(config: ModelConfig, params: dict) -> Any:
    """Returns the weights of the family's `prefill` and `step`, sharded over the mesh in use."""
    family = family_of(config)
    weights = family.prepare(config, params)
    return constrain(weights, weight_specs(config, weights))


def weight_specs(config: ModelConfig, weights: Any) -> Any:
    """Returns how the weights of `prepare`, or their shapes, are sharded: a tree like theirs."""

    def specs_of(weight: Any, spec: PartitionSpec) -> Any:
        return weight.specs(spec) if isinstance(weight, Quantized) else spec

    specs = family_of(config).weight_specs(config)
    return jax.tree.map(specs_of, weights, specs, is_leaf=is_quantized)


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
        # Padded to the length of the cache now: its shape must not change while it is decoded.
        return KV_CACHES[kv_cache](jnp.pad(a_MSH, ((0, 0), (0, new_slots), (0, 0))))

    keys, values = zip(*layers)
    cache = Cache(tuple(map(to_slots, keys)), tuple(map(to_slots, values)))
    return logits_BV, constrain(cache, cache_spec(config))


def extend_by_steps(
    config: ModelConfig,
    weights: Any,
    cache: Cache,
    tokens_RT: jax.Array,
    starts_R: jax.Array,
    slots_R: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    """Reads tokens one after the other with the family's `step`; see `family.Family.extend`.

    Returns fp32 logits_RTV, and the cache.
    """
    sequences = jax.tree.leaves(cache)[0].shape[0] // config.n_kv_heads
    slots_R = jnp.arange(sequences) if slots_R is None else slots_R
    rows_N = rows_of(config, sequences, slots_R)
    # Rows that do not exist are clamped here and dropped below.
    # The family's `step` knows no slots, so that it runs on a cache of the chosen sequences alone.
    gathered: Cache = jax.tree.map(lambda a_MS: a_MS[rows_N], cache)

    def step(carry: tuple[Cache, jax.Array], tokens_R: jax.Array) -> tuple[Any, jax.Array]:
        cache, positions_R = carry
        logits_RV, cache = family_of(config).step(config, weights, cache, tokens_R, positions_R)
        return (cache, positions_R + 1), logits_RV

    (gathered, _), logits_TRV = jax.lax.scan(step, (gathered, starts_R), tokens_RT.T)

    def write(a_MS: jax.Array, new_NS: jax.Array) -> jax.Array:
        return a_MS.at[rows_N].set(new_NS, mode="drop", unique_indices=True)

    cache = constrain(jax.tree.map(write, cache, gathered), cache_spec(config))
    return jnp.einsum("TRV->RTV", logits_TRV), cache
