"""Reads a prompt, then one token per sequence at a time: the same function as `model.py`.

Prefill and decoding read the same weights, whose layout follows the cost of decoding. A step reads
every weight once for a few columns of activations. So the weights are cast and split into layers
once and not at every step (a scan over layers would copy each layer out of the stack), and are
output-major with activations as columns, x_DB: XLA's CPU backend multiplies (X, D) @ (D, B) about
twice as fast as (B, D) @ (D, X). For the many tokens of a prompt both take the same time.
Dims: those of `models/layers.py` and `models/decoding.py`, and X any output.
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
from codellama_jax.models.layers import (
    Inputs,
    length_shards,
    mesh_axes,
    rms_norm,
    rotate,
    striped,
    unstriped,
)
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.layers import Block
from codellama_jax.models.llama.rope import rope
from codellama_jax.models.lookup import embed
from codellama_jax.models.quantized import (
    Quantized,
    Weight,
    input_major,
    multiply,
    output_major,
    outputs_first,
)

Leaf = TypeVar("Leaf", jax.Array, PartitionSpec)


@struct.dataclass
class Layer(Generic[Leaf]):
    """Weights of one layer, output-major, or their shardings."""

    attention_norm_D: Leaf
    qkv_XD: Leaf
    out_DX: Leaf
    ffn_norm_D: Leaf
    # X is gate and up. One flattened output dim would be sharded between the two, and every step
    # would have to bring matching parts of them together.
    gate_up_XFD: Leaf
    down_DF: Leaf
    qkv_bias_X: Leaf | None = None
    out_bias_D: Leaf | None = None


@struct.dataclass
class Weights(Generic[Leaf]):
    """Weights of a model, output-major, or their shardings."""

    embedding_VD: Leaf
    layers: tuple[Layer[Leaf], ...]
    final_norm_D: Leaf
    head_VD: Leaf


def weight_specs(config: LlamaConfig) -> Weights[PartitionSpec]:
    """Returns the PartitionSpec of each weight."""
    layer: Layer[PartitionSpec] = Layer(
        attention_norm_D=REPLICATED,
        qkv_XD=BY_OUTPUTS,
        out_DX=BY_INPUTS,
        ffn_norm_D=REPLICATED,
        gate_up_XFD=PartitionSpec(None, *BY_OUTPUTS),
        down_DF=BY_INPUTS,
        qkv_bias_X=PartitionSpec("tensor") if config.attention_bias != "none" else None,
        out_bias_D=REPLICATED if config.attention_bias == "all" else None,
    )
    return Weights(BY_OUTPUTS, (layer,) * config.n_layers, REPLICATED, BY_OUTPUTS)


def prepare(config: LlamaConfig, params: dict) -> Weights[jax.Array]:
    """Casts parameters to the compute dtype and makes them output-major, one array per layer."""

    # Training keeps biases by head; a step adds them to flat columns.
    def flat(attention: dict, name: str) -> jax.Array | None:
        return attention[name].astype(dtype).ravel() if name in attention else None

    dtype, layers = config.compute_dtype, []
    for i in range(config.n_layers):
        # Indexing the stack copies each layer once. In a loop over layers every step would copy
        # them.
        block = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        attention, ffn = block["attention"], block["ffn"]
        layer = Layer(
            # Norm scales stay fp32: `rms_norm` computes in fp32, and they are small.
            attention_norm_D=block["attention_norm"]["scale"],
            qkv_XD=output_major(attention["qkv"], config.d_model, dtype),
            out_DX=output_major(attention["out"], config.n_heads * config.head_dim, dtype),
            ffn_norm_D=block["ffn_norm"]["scale"],
            gate_up_XFD=outputs_first(ffn["gate_up"], (2, config.d_ff), dtype),
            down_DF=output_major(ffn["down"], config.d_ff, dtype),
            qkv_bias_X=flat(attention, "qkv_bias"),
            out_bias_D=flat(attention, "out_bias"),
        )
        layers.append(layer)
    embedding_VD = params["embedding"].astype(dtype)
    head_VD = output_major(output_head(params), config.d_model, dtype)
    return Weights(embedding_VD, tuple(layers), params["final_norm"]["scale"], head_VD)


def block_params(config: LlamaConfig, layer: Layer[jax.Array]) -> dict:
    """Returns a layer's weights as parameters of `Block`.

    They are views: XLA folds the transposes into the matmuls and copies nothing.
    """
    # Prefill runs the training block, so that there is one implementation of a layer for many
    # tokens.
    K, G, H = config.n_kv_heads, config.n_heads // config.n_kv_heads, config.head_dim
    down_FD = input_major(layer.down_DF, (-1,), (config.d_model,))
    qkv_DKXH = input_major(layer.qkv_XD, (-1,), (K, G + 2, H))
    out_KGHD = input_major(layer.out_DX, (K, G, H), (-1,))
    gate_up_DXF: Weight
    if isinstance(layer.gate_up_XFD, Quantized):
        gate_up_DXF = layer.gate_up_XFD
    elif mesh_axes("ffn"):
        gate_up_DXF = jnp.einsum("XFD->DXF", layer.gate_up_XFD)
    else:
        # As a matrix, because XLA's CPU backend copies transposed weights of three dims.
        _, F, D = layer.gate_up_XFD.shape
        gate_up_DXF = layer.gate_up_XFD.reshape(2 * F, D).T.reshape(D, 2, F)
    attention: dict[str, Weight] = {"qkv": qkv_DKXH, "out": out_KGHD}
    if layer.qkv_bias_X is not None:
        attention["qkv_bias"] = layer.qkv_bias_X.reshape(K, G + 2, H)
    if layer.out_bias_D is not None:
        attention["out_bias"] = layer.out_bias_D
    return {
        "attention_norm": {"scale": layer.attention_norm_D},
        "attention": attention,
        "ffn_norm": {"scale": layer.ffn_norm_D},
        "ffn": {"gate_up": gate_up_DXF, "down": down_FD},
    }


def prefill(
    config: LlamaConfig, weights: Weights[jax.Array], tokens_BT: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Reads prompts; see `family.Family.prefill` for arguments and results."""
    # Compiled for a mesh that shards the length, prefill runs ring attention as training does.
    shards = length_shards(tokens_BT.shape[1])
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    positions_BT = striped(positions_BT, shards)
    angles = rope(config, positions_BT, lengths_B[:, None])
    inputs = Inputs(positions_BT, None, angles, keep_kv=True)
    table_VD = weights.embedding_VD
    x_BTD = embed(table_VD, striped(tokens_BT, shards), table_VD.dtype)
    block, layers = Block(config), []
    for layer in weights.layers:
        # Unlike in training, the layers are unrolled: their weights are separate arrays.
        params = {"params": block_params(config, layer)}
        outputs: Any = block.apply(params, x_BTD, inputs)
        x_BTD, (k_BTKH, v_BTKH) = outputs
        layers.append((unstriped(k_BTKH, shards), unstriped(v_BTKH, shards)))
    # The head multiplies with one column per prompt instead of T.
    last_DB = last_tokens(unstriped(x_BTD, shards), lengths_B)
    return unembed(config, weights, last_DB), layers


def unembed(config: LlamaConfig, weights: Weights[jax.Array], x_DB: jax.Array) -> jax.Array:
    """Returns fp32 logits_BV of one token per sequence, from the last block's activations."""
    x_DB = rms_norm(x_DB, weights.final_norm_D[:, None], config.norm_eps, axis=0)
    return logits_of(weights.head_VD, x_DB)


def step(
    config: LlamaConfig,
    weights: Weights[jax.Array],
    cache: Cache,
    tokens_B: jax.Array,
    positions_B: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Reads one token per sequence; see `family.Family.step` for arguments and results."""
    x_DB, cache = _read(config, weights, cache, tokens_B, Columns(positions_B[:, None]))
    return unembed(config, weights, x_DB), cache


def extend(
    config: LlamaConfig,
    weights: Weights[jax.Array],
    cache: Cache,
    tokens_RT: jax.Array,
    starts_R: jax.Array,
    lengths_R: jax.Array | None = None,
    slots_R: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads more tokens; see `family.Family.extend` for arguments and results."""
    read = functools.partial(_read, config, weights, cache)
    logits = functools.partial(unembed, config, weights)
    return extended(read, logits, tokens_RT, starts_R, lengths_R, slots_R)


def _read(
    config: LlamaConfig,
    weights: Weights[jax.Array],
    cache: Cache,
    tokens_N: jax.Array,
    columns: Columns,
) -> tuple[jax.Array, Cache]:
    """Reads tokens as columns; returns the last block's activations x_DN, and the cache."""
    K, H = config.n_kv_heads, config.head_dim
    G, N = config.n_heads // K, len(tokens_N)
    # The length on which dynamic scaling depends is that up to each token.
    positions_1N = columns.positions_N[None]
    angles = rope(config, positions_1N, positions_1N + 1)
    cos_11HN, sin_11HN = (a[0, :, 0].T[None, None] for a in angles)

    def norm(x_DN: jax.Array, scale_D: jax.Array) -> jax.Array:
        return rms_norm(x_DN, scale_D[:, None], config.norm_eps, axis=0)

    # From here on tokens are columns: a matmul is W (X, D) @ x (D, N), as the module's docstring
    # explains.
    x_DN = weights.embedding_VD[tokens_N].T
    keys, values = [], []
    for layer, k_MSH, v_MSH in zip(weights.layers, cache.k_MSH, cache.v_MSH):
        qkv_XN = multiply(layer.qkv_XD, norm(x_DN, layer.attention_norm_D))
        if layer.qkv_bias_X is not None:
            qkv_XN += layer.qkv_bias_X[:, None]
        qkv_KXHN = qkv_XN.reshape(K, G + 2, H, N)
        # The queries and the key of a head are neighbours in the fused weight: one rotation for
        # both.
        qk_KXHN = rotate(qkv_KXHN[:, : G + 1], (cos_11HN, sin_11HN), axis=-2)
        # Written before attending, because a token attends to itself too.
        keys.append(columns.append(config, k_MSH, qk_KXHN[:, G]))
        values.append(columns.append(config, v_MSH, qkv_KXHN[:, G + 1]))
        out_XN = columns.attend(config, qk_KXHN[:, :G], keys[-1], values[-1])
        x_DN += multiply(layer.out_DX, out_XN)
        if layer.out_bias_D is not None:
            x_DN += layer.out_bias_D[:, None]
        gate_FN, up_FN = multiply(layer.gate_up_XFD, norm(x_DN, layer.ffn_norm_D))
        x_DN += multiply(layer.down_DF, jax.nn.silu(gate_FN) * up_FN)
    return x_DN, Cache(tuple(keys), tuple(values))
