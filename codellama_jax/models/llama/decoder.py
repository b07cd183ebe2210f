"""One token a row at a time, after a prompt: the same function as `models/llama.py`, laid out for what decoding costs.

A step reads every weight once for a few columns of activations. So weights are cast and cut into layers once, not every step
(a scan over layers would copy each layer out of the stack), and stand output-major with activations as columns, x_DB:
XLA's CPU backend multiplies (X, D) @ (D, B) about twice as fast as (B, D) @ (D, X).
Dims: those of `models/layers.py`, and X any output, S slots of the cache.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from codellama_jax.config import ModelConfig
from codellama_jax.models.layers import mesh_axes, rms_norm, rope_angles, rotate
from codellama_jax.models.llama.model import Llama
from kernels.decode_attention import decode_attention


@struct.dataclass
class Layer:
    attention_norm_D: jax.Array
    qkv_XD: jax.Array
    out_DX: jax.Array
    ffn_norm_D: jax.Array
    gate_up_XD: jax.Array
    down_DF: jax.Array


@struct.dataclass
class Weights:
    embedding_VD: jax.Array
    layers: tuple[Layer, ...]
    final_norm_D: jax.Array
    head_VD: jax.Array


@struct.dataclass
class Cache:
    """Keys and values, one array a layer. Slot s of a row holds its position s; what is behind the row's last means nothing.

    Key heads and rows are one dim M, or XLA's CPU backend would copy the caches of a single row in every step.
    """

    k_MSH: tuple[jax.Array, ...]
    v_MSH: tuple[jax.Array, ...]


# Where things lie on a mesh (the axes of `training/mesh.py`). Rows are cut by `data` alone: along fsdp and tensor every device
# takes its part of the weights to every row, so that no device ever gathers them.
LOGICAL_AXES = (("batch", "data"), ("heads", "tensor"), ("ffn", "tensor"), ("vocab", "tensor"))
CACHE = PartitionSpec(("tensor", "data"), "context")
WHOLE = PartitionSpec()
BY_OUTPUTS, BY_INPUTS = PartitionSpec("tensor", "fsdp"), PartitionSpec("fsdp", "tensor")
LAYER = Layer(
    WHOLE,
    qkv_XD=BY_OUTPUTS,
    out_DX=BY_INPUTS,
    ffn_norm_D=WHOLE,
    gate_up_XD=BY_OUTPUTS,
    down_DF=BY_INPUTS,
)


def layout(config: ModelConfig) -> Weights:
    """Returns the PartitionSpec of each weight."""
    return Weights(BY_OUTPUTS, (LAYER,) * config.n_layers, WHOLE, BY_OUTPUTS)


def place(tree: object, specs: object) -> object:
    """Lays arrays out on the mesh in use; on one device they stay as they are."""
    return (
        jax.lax.with_sharding_constraint(tree, specs)
        if jax.sharding.get_abstract_mesh().size > 1
        else tree
    )


def for_decoding(config: ModelConfig) -> ModelConfig:
    """Returns the config to generate with: nothing is rematerialised, and a CPU computes in fp32, which is its fastest."""
    on_cpu = jax.default_backend() == "cpu"
    return dataclasses.replace(
        config, remat="none", compute_dtype="float32" if on_cpu else config.compute_dtype
    )


@functools.partial(jax.jit, static_argnums=0)
def prepare(config: ModelConfig, params: dict) -> Weights:
    """Casts the parameters of a `Llama` to the compute dtype and lays them out for `step`."""
    output_major = lambda w, inputs: w.astype(config.compute_dtype).reshape(inputs, -1).T
    stack = params["layers"]
    attention, ffn = stack["attention"], stack["ffn"]
    layers = tuple(
        Layer(
            attention_norm_D=stack["attention_norm"]["scale"][i],
            qkv_XD=output_major(attention["qkv"][i], config.d_model),
            out_DX=output_major(attention["out"][i], config.n_heads * config.head_dim),
            ffn_norm_D=stack["ffn_norm"]["scale"][i],
            gate_up_XD=output_major(ffn["gate_up"][i], config.d_model),
            down_DF=output_major(ffn["down"][i], config.d_ff),
        )
        for i in range(config.n_layers)
    )
    embedding_VD = params["embedding"].astype(config.compute_dtype)
    weights = Weights(
        embedding_VD,
        layers,
        params["final_norm"]["scale"],
        output_major(params["head"], config.d_model),
    )
    return place(weights, layout(config))


def prefill(
    config: ModelConfig, params: dict, tokens_BT: jax.Array, lengths_B: jax.Array, new_slots: int
) -> tuple[jax.Array, Cache]:
    """Reads prompts of `lengths_B` tokens, padded on the right to T.

    Returns fp32 logits_BV after the last token of each, and a cache with room for `new_slots` tokens more.
    """
    B, T = tokens_BT.shape
    model = Llama(config)
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    x_BTD, kv_LBTKH = model.apply(
        {"params": params}, tokens_BT, positions_BT, keep_kv=True, method="hidden"
    )
    last_B1D = jnp.take_along_axis(x_BTD, lengths_B[:, None, None] - 1, axis=1)
    logits_BV = model.apply({"params": params}, last_B1D, method="unembed")[:, 0]
    to_slots = lambda a_BTKH: jnp.pad(
        jnp.einsum("BTKH->KBTH", a_BTKH).reshape(-1, T, config.head_dim),
        ((0, 0), (0, new_slots), (0, 0)),
    )
    return logits_BV, place(Cache(*(tuple(map(to_slots, a_LBTKH)) for a_LBTKH in kv_LBTKH)), CACHE)


def step(
    config: ModelConfig, weights: Weights, cache: Cache, tokens_B: jax.Array, positions_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """Reads one token a row at its position. Returns fp32 logits_BV after it, and the cache with it."""
    B, K, G, H = (
        tokens_B.shape[0],
        config.n_kv_heads,
        config.n_heads // config.n_kv_heads,
        config.head_dim,
    )
    rope = tuple(
        a[:, 0].T[None, None]
        for a in rope_angles(positions_B[:, None], H, config.rope_theta, config.rope_scaling)
    )
    heads = lambda a_KXHB: jnp.einsum("KXHB->KBXH", a_KXHB).reshape(K * B, -1, H)
    row_M, slot_M = jnp.arange(K * B), jnp.tile(positions_B, K)
    put = lambda slots_MSH, new_KXHB: place(
        slots_MSH.at[row_M, slot_M].set(heads(new_KXHB)[:, 0], unique_indices=True), CACHE
    )
    norm = lambda x_DB, scale_D: rms_norm(x_DB, scale_D[:, None], config.norm_eps, axis=0)
    x_DB = weights.embedding_VD[tokens_B].T
    keys, values = [], []
    for layer, k_MSH, v_MSH in zip(weights.layers, cache.k_MSH, cache.v_MSH):
        qkv_KXHB = (layer.qkv_XD @ norm(x_DB, layer.attention_norm_D)).reshape(K, G + 2, H, B)
        qk_KXHB = rotate(qkv_KXHB[:, : G + 1], rope, axis=-2)
        keys.append(put(k_MSH, qk_KXHB[:, G:]))
        values.append(put(v_MSH, qkv_KXHB[:, G + 1 :]))
        out_MGH = decode_attention(
            heads(qk_KXHB[:, :G]),
            keys[-1],
            values[-1],
            positions_B + 1,
            head_axes=mesh_axes("heads", K),
        )
        x_DB += layer.out_DX @ jnp.einsum("KBGH->KGHB", out_MGH.reshape(K, B, G, H)).reshape(-1, B)
        gate_FB, up_FB = jnp.split(layer.gate_up_XD @ norm(x_DB, layer.ffn_norm_D), 2)
        x_DB += layer.down_DF @ (jax.nn.silu(gate_FB) * up_FB)
    logits_VB = jnp.matmul(
        weights.head_VD, norm(x_DB, weights.final_norm_D), preferred_element_type=jnp.float32
    )
    return jax.lax.optimization_barrier(logits_VB).T, Cache(tuple(keys), tuple(values))
