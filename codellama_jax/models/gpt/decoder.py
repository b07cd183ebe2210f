"""Reads a prompt, then one token per sequence at a time: the same function as `model.py`.

The layout of the weights follows `models/llama/decoder.py`: one array per layer, output-major, and
in `step` activations are columns, x_DB.
Dims: those of `models/layers.py` and `models/decoding.py`; P learned positions, X any output.
"""

from __future__ import annotations

import functools
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from codellama_jax.models.decoding import (
    BY_INPUTS,
    BY_OUTPUTS,
    REPLICATED,
    Cache,
    Columns,
    extended,
    last_tokens,
    logits_of,
)
from codellama_jax.models.family import output_head
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.gpt.layers import Block, activate, layer_norm
from codellama_jax.models.gpt.model import at_positions
from codellama_jax.models.layers import (
    Inputs,
    length_shards,
    mesh_axes,
    striped,
    unstriped,
)
from codellama_jax.models.lookup import embed
from codellama_jax.models.quantized import (
    input_major,
    inputs_first,
    multiply,
    output_major,
    outputs_first,
)

Leaf = TypeVar("Leaf", jax.Array, PartitionSpec)


@struct.dataclass
class Norm(Generic[Leaf]):
    """Scale and bias of a LayerNorm, fp32, or their shardings."""

    scale_D: Leaf
    bias_D: Leaf

    def columns(self, x_DB: jax.Array, epsilon: float) -> jax.Array:
        """Returns columns of activations, normalized."""
        return layer_norm(x_DB, self.scale_D[:, None], self.bias_D[:, None], epsilon, axis=0)


@struct.dataclass
class Layer(Generic[Leaf]):
    """Weights of one layer, output-major, or their shardings."""

    attention_norm: Norm[Leaf]
    q_XD: Leaf
    q_bias_X: Leaf
    # Keys, then values. One flattened output dim would be sharded between the two.
    kv_2XD: Leaf
    kv_bias_2X: Leaf
    out_DX: Leaf
    out_bias_D: Leaf
    ffn_norm: Norm[Leaf]
    up_FD: Leaf
    up_bias_F: Leaf
    down_DF: Leaf
    down_bias_D: Leaf


@struct.dataclass
class Weights(Generic[Leaf]):
    """Weights of a model, output-major, or their shardings."""

    embedding_VD: Leaf
    positions_PD: Leaf
    layers: tuple[Layer[Leaf], ...]  # the top query layer is the last one
    final_norm: Norm[Leaf]
    top_queries_PD: Leaf | None
    head_VD: Leaf


def weight_specs(config: GPTConfig) -> Weights[PartitionSpec]:
    """Returns the PartitionSpec of each weight."""
    norm, by_outputs = Norm(REPLICATED, REPLICATED), PartitionSpec("tensor")
    # Key heads are sharded like the cache, and not at all where the mesh does not divide them.
    kv_axes = mesh_axes("heads", config.n_kv_heads) or None
    layer = Layer(
        attention_norm=norm,
        q_XD=BY_OUTPUTS,
        q_bias_X=by_outputs,
        kv_2XD=PartitionSpec(None, kv_axes, "fsdp"),
        kv_bias_2X=PartitionSpec(None, kv_axes),
        out_DX=BY_INPUTS,
        out_bias_D=REPLICATED,
        ffn_norm=norm,
        up_FD=BY_OUTPUTS,
        up_bias_F=by_outputs,
        down_DF=BY_INPUTS,
        down_bias_D=REPLICATED,
    )
    # A step reads one row of these tables per sequence, so that sharding the rows would only add
    # communication.
    by_width = PartitionSpec(None, "fsdp")
    return Weights(
        embedding_VD=BY_OUTPUTS,
        positions_PD=by_width,
        layers=(layer,) * (config.n_layers + config.top_query),
        final_norm=norm,
        top_queries_PD=by_width if config.top_query else None,
        head_VD=BY_OUTPUTS,
    )


def prepare(config: GPTConfig, params: dict) -> Weights[jax.Array]:
    """Casts parameters to the compute dtype and makes them output-major, one array per layer."""
    dtype = config.compute_dtype
    layers = []
    for i in range(config.n_layers):
        layers.append(_layer(config, jax.tree.map(lambda a, i=i: a[i], params["layers"])))
    if config.top_query:
        layers.append(_layer(config, params["top_layer"]))
    return Weights(
        embedding_VD=params["embedding"].astype(dtype),
        positions_PD=params["positions"].astype(dtype),
        layers=tuple(layers),
        final_norm=Norm(params["final_norm"]["scale"], params["final_norm"]["bias"]),
        top_queries_PD=params["top_queries"].astype(dtype) if config.top_query else None,
        head_VD=output_head(params).astype(dtype).T,
    )


def _layer(config: GPTConfig, params: dict) -> Layer[jax.Array]:
    """Returns the weights of one layer from the parameters of its block."""
    attention, ffn = params["attention"], params["ffn"]
    D, dtype = config.d_model, config.compute_dtype

    def norm(name: str) -> Norm[jax.Array]:
        return Norm(params[name]["scale"], params[name]["bias"])

    return Layer(
        attention_norm=norm("attention_norm"),
        q_XD=output_major(attention["q"], D, dtype),
        q_bias_X=attention["q_bias"].astype(dtype).reshape(-1),
        kv_2XD=outputs_first(attention["kv"], (2, config.n_kv_heads * config.head_dim), dtype),
        kv_bias_2X=attention["kv_bias"].astype(dtype).reshape(2, -1),
        out_DX=output_major(attention["out"], config.n_heads * config.head_dim, dtype),
        out_bias_D=attention["out_bias"].astype(dtype),
        ffn_norm=norm("ffn_norm"),
        up_FD=output_major(ffn["up"], D, dtype),
        up_bias_F=ffn["up_bias"].astype(dtype),
        down_DF=output_major(ffn["down"], config.d_ff, dtype),
        down_bias_D=ffn["down_bias"].astype(dtype),
    )


def block_params(config: GPTConfig, layer: Layer[jax.Array]) -> dict:
    """Returns a layer's weights as parameters of `Block`.

    They are views: XLA folds the transposes into the matmuls and copies nothing.
    """
    D, N, K, H = config.d_model, config.n_heads, config.n_kv_heads, config.head_dim

    def norm(weights: Norm[jax.Array]) -> dict:
        return {"scale": weights.scale_D, "bias": weights.bias_D}

    return {
        "attention_norm": norm(layer.attention_norm),
        "attention": {
            "q": input_major(layer.q_XD, (D,), (N, H)),
            "q_bias": layer.q_bias_X.reshape(N, H),
            "kv": inputs_first(layer.kv_2XD, (2, K, H)),
            "kv_bias": layer.kv_bias_2X.reshape(2, K, H),
            "out": input_major(layer.out_DX, (N, H), (D,)),
            "out_bias": layer.out_bias_D,
        },
        "ffn_norm": norm(layer.ffn_norm),
        "ffn": {
            "up": input_major(layer.up_FD, (D,), (config.d_ff,)),
            "up_bias": layer.up_bias_F,
            "down": input_major(layer.down_DF, (config.d_ff,), (D,)),
            "down_bias": layer.down_bias_D,
        },
    }


def prefill(
    config: GPTConfig, weights: Weights[jax.Array], tokens_BT: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Reads prompts; see `family.Family.prefill` for arguments and results."""
    # Compiled for a mesh that shards the length, prefill runs ring attention as training does.
    shards = length_shards(tokens_BT.shape[1])
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    positions_BT = striped(positions_BT, shards)
    inputs = Inputs(positions_BT, None, keep_kv=True)
    dtype = weights.embedding_VD.dtype
    x_BTD = embed(weights.embedding_VD, striped(tokens_BT, shards), dtype)
    x_BTD += at_positions(weights.positions_PD, positions_BT, dtype)
    norm, block, layers = weights.final_norm, Block(config), []
    for number, layer in enumerate(weights.layers):
        queries_BTD = None
        # The top query layer reads the final norm's output, and its queries are learned vectors of
        # the position instead of activations (CodeGeeX, and PanGu-alpha before it).
        if number == config.n_layers:
            x_BTD = layer_norm(
                x_BTD, norm.scale_D[None, None], norm.bias_D[None, None], config.norm_eps
            )
            assert weights.top_queries_PD is not None
            queries_BTD = at_positions(weights.top_queries_PD, positions_BT, dtype)
        params = {"params": block_params(config, layer)}
        outputs: Any = block.apply(params, x_BTD, inputs, queries_BTD)
        x_BTD, (k_BTKH, v_BTKH) = outputs
        layers.append((unstriped(k_BTKH, shards), unstriped(v_BTKH, shards)))
    last_DB = last_tokens(unstriped(x_BTD, shards), lengths_B)
    return _unembed(config, weights, last_DB), layers


def _unembed(config: GPTConfig, weights: Weights[jax.Array], x_DB: jax.Array) -> jax.Array:
    """Returns fp32 logits_BV of one token per sequence, from the last block's activations."""
    # The top query layer follows the final norm, and no norm follows it.
    if not config.top_query:
        x_DB = weights.final_norm.columns(x_DB, config.norm_eps)
    return logits_of(weights.head_VD, x_DB)


def step(
    config: GPTConfig,
    weights: Weights[jax.Array],
    cache: Cache,
    tokens_B: jax.Array,
    positions_B: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Reads one token per sequence; see `family.Family.step` for arguments and results."""
    x_DB, cache = _read(config, weights, cache, tokens_B, Columns(positions_B[:, None]))
    return _unembed(config, weights, x_DB), cache


def extend(
    config: GPTConfig,
    weights: Weights[jax.Array],
    cache: Cache,
    tokens_RT: jax.Array,
    starts_R: jax.Array,
    lengths_R: jax.Array | None = None,
    slots_R: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads more tokens; see `family.Family.extend` for arguments and results."""
    read = functools.partial(_read, config, weights, cache)
    logits = functools.partial(_unembed, config, weights)
    return extended(read, logits, tokens_RT, starts_R, lengths_R, slots_R)


def _read(
    config: GPTConfig,
    weights: Weights[jax.Array],
    cache: Cache,
    tokens_N: jax.Array,
    columns: Columns,
) -> tuple[jax.Array, Cache]:
    """Reads tokens as columns; returns the last block's activations x_DN, and the cache."""
    K, H, N = config.n_kv_heads, config.head_dim, len(tokens_N)
    G, epsilon = config.n_heads // K, config.norm_eps

    def vectors(table_PD: jax.Array | None) -> jax.Array:
        assert table_PD is not None
        # Slots that are done may be past the last learned position. Nobody reads their output, and
        # clipping keeps it finite.
        return table_PD.at[columns.positions_N].get(mode="clip").T

    # Learned positions are added once, before the first layer: unlike with RoPE, keys and queries
    # of the layers need no position.
    x_DN = weights.embedding_VD[tokens_N].T + vectors(weights.positions_PD)
    keys, values = [], []
    for number, layer in enumerate(weights.layers):
        is_top = number == config.n_layers
        if is_top:
            x_DN = weights.final_norm.columns(x_DN, epsilon)
        normed_DN = layer.attention_norm.columns(x_DN, epsilon)
        queries_DN = vectors(weights.top_queries_PD) if is_top else normed_DN
        q_XN = multiply(layer.q_XD, queries_DN) + layer.q_bias_X[:, None]
        # Keys and values come from the normalised activations in every layer, the top one included.
        kv_2XN = multiply(layer.kv_2XD, normed_DN) + layer.kv_bias_2X[:, :, None]
        k_KHN, v_KHN = kv_2XN.reshape(2, K, H, N)
        keys.append(columns.append(config, cache.k_MSH[number], k_KHN))
        values.append(columns.append(config, cache.v_MSH[number], v_KHN))
        # With multi-query attention K is 1, and all query heads attend to the same keys.
        q_KGHN = q_XN.reshape(K, G, H, N)
        out_XN = columns.attend(config, q_KGHN, keys[-1], values[-1])
        x_DN += multiply(layer.out_DX, out_XN) + layer.out_bias_D[:, None]
        up_FN = multiply(layer.up_FD, layer.ffn_norm.columns(x_DN, epsilon))
        up_FN = activate(up_FN + layer.up_bias_F[:, None], config.activation)
        x_DN += multiply(layer.down_DF, up_FN) + layer.down_bias_D[:, None]
    return x_DN, Cache(tuple(keys), tuple(values))
