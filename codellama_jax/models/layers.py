"""Layers that model families share.

Dims: B batch, T length, D model, N query heads, K key/value heads, G = N / K, H head dim, F
feed-forward. Parameters are fp32 and carry logical axis names; `sharding/mesh.py` maps each name to
mesh axes. Matmuls run in `compute_dtype`; norms, angles and softmax in fp32.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from codellama_jax.config import ModelConfig
from kernels import flash_attention, ring_attention


def parameter(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    variance: float,
) -> jax.Array:
    """Declares an fp32 weight with its logical axes, drawn from a normal distribution.

    Args:
      module: the module that owns it.
      name, shape: of the weight.
      axes: the logical axis of each dimension; None is never sharded.
      variance: of the distribution; 1 / inputs keeps activations at unit scale.
    """
    init = nn.with_logical_partitioning(nn.initializers.normal(variance**0.5), axes)
    return module.param(name, init, shape, jnp.float32)


def mesh_axes(name: str, size: int = 0) -> tuple[str, ...]:
    """Returns the axes of the current mesh that shard a logical axis under the current rules.

    There are none where they do not divide `size`.
    """
    mesh = jax.sharding.get_abstract_mesh().shape
    (found,) = nn.logical_to_mesh_axes((name,))
    candidates = (found,) if isinstance(found, str) else found or ()
    axes = tuple(axis for axis in candidates if mesh.get(axis, 1) > 1)
    return () if size % math.prod(mesh[axis] for axis in axes) else axes


def length_shards(length: int = 0) -> int:
    """Returns how many devices of the current mesh share the length of a sequence.

    It is 1 where they do not divide `length`.
    """
    return _devices(mesh_axes("length", length))


def _devices(axes: tuple[str, ...]) -> int:
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in axes)


def dealt(x_BT: jax.Array | None, shards: int) -> jax.Array | None:
    """Puts sequences in the order in which ring attention over `shards` devices reads them."""
    if x_BT is None or shards == 1:
        return x_BT
    return ring_attention.stripe(x_BT, shards)


def collected(x_BT: jax.Array, shards: int) -> jax.Array:
    """Puts `dealt` sequences (B, T, ...) back in their own order."""
    return x_BT if shards == 1 else ring_attention.stripe(x_BT, x_BT.shape[1] // shards)


def project(x_BTD: jax.Array, w_DX: jax.Array) -> jax.Array:
    """Multiplies by a weight of any number of output dims, in x's dtype.

    Sequences are flattened to (B T, D) and the output dims to one, which XLA's CPU backend trains
    1.3 times faster. Where a mesh shards them they are not: a sharded length stays as it is, and
    gate and up flattened together could be sharded by neither.
    """
    w_DX = w_DX.astype(x_BTD.dtype)
    rows = x_BTD if length_shards() > 1 else x_BTD.reshape(-1, x_BTD.shape[-1])
    if mesh_axes("ffn"):
        out = jnp.tensordot(rows, w_DX, 1)
    else:
        out = rows @ w_DX.reshape(w_DX.shape[0], -1)
    return out.reshape(*x_BTD.shape[:-1], *w_DX.shape[1:])


def rope_angles(
    positions_BT: jax.Array, head_dim: int, theta: float, scaling: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Returns cos_BTH and sin_BTH over half the head, fp32.

    The angle is position / scaling x theta^(-2i / H) (Code Llama, section 2.4). A scaling above 1 is
    linear position interpolation (Chen et al. 2023).
    """
    # Rounded where the published code rounds: one unit in the last place is 1e-3 radians at
    # position 8,191.
    frequencies_H = 1 / (theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angles_BTH = (positions_BT.astype(jnp.float32) / scaling)[..., None] * frequencies_H[None, None]
    return jnp.cos(angles_BTH), jnp.sin(angles_BTH)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array], axis: int = -1) -> jax.Array:
    """Rotates the pairs (i, i + H/2) of every head along `axis`; computes in fp32, returns x's dtype.

    `rope` holds cos and sin, which broadcast to half of x.
    """
    cos, sin = rope
    a, b = jnp.split(x.astype(jnp.float32), 2, axis)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, axis: int = -1) -> jax.Array:
    """Divides by the root mean square along `axis`; computes in fp32, returns x's dtype.

    `scale` broadcasts to x.
    """
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(x32**2, axis, keepdims=True) + epsilon)
    return (x32 * scale).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root mean square normalization with a learned scale (Zhang and Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        scale_D = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            x_BTD.shape[-1:],
            jnp.float32,
        )
        return rms_norm(x_BTD, scale_D[None, None], self.epsilon)


@struct.dataclass
class Inputs:
    """What every layer reads beside its activations."""

    positions_BT: jax.Array
    segment_ids_BT: jax.Array | None
    rope: tuple[jax.Array, jax.Array] | None = None  # cos and sin, BT1H
    # Whether to return every layer's keys and values, for decoding to continue from.
    keep_kv: bool = struct.field(pytree_node=False, default=False)


def attend(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, inputs: Inputs, implementation: str
) -> jax.Array:
    """Returns out_BTNH of causal attention.

    A kernel runs on each device's shard of the batch and heads, in a ring where the length is
    sharded. Key heads that the mesh does not divide (one, in multi-query attention) are repeated
    until it does, so that each device holds those of its query heads.
    """
    repeats = _head_repeats(q_BTNH.shape[2], k_BTKH.shape[2])
    if repeats > 1:
        k_BTKH, v_BTKH = jnp.repeat(k_BTKH, repeats, axis=2), jnp.repeat(v_BTKH, repeats, axis=2)
    B, T, K, _ = k_BTKH.shape
    split = {
        "batch_axes": mesh_axes("batch", B),
        "head_axes": mesh_axes("heads", K),
        "implementation": implementation,
    }
    if length_axes := mesh_axes("length", T):
        return ring_attention.attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            segments_BT=inputs.segment_ids_BT,
            length_axes=length_axes,
            **split,
        )
    positions = {"q_positions_BT": inputs.positions_BT, "kv_positions_BS": inputs.positions_BT}
    segments = {"q_segments_BT": inputs.segment_ids_BT, "kv_segments_BS": inputs.segment_ids_BT}
    return flash_attention.attention(q_BTNH, k_BTKH, v_BTKH, **positions, **segments, **split)


def _head_repeats(n_heads: int, n_kv_heads: int) -> int:
    """Returns how often each key head is repeated so that the mesh divides them, 1 if it cannot."""
    devices = _devices(mesh_axes("heads"))
    repeats = math.lcm(n_kv_heads, devices) // n_kv_heads
    return 1 if n_heads % (n_kv_heads * repeats) else repeats


# What the backward pass computes again, by the config's `remat`.
REMAT_POLICIES = {
    "full": None,  # everything but the input of every layer
    # The matmuls with weights are kept as well.
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def stacked(block: type[nn.Module], config: ModelConfig) -> nn.Module:
    """Returns `n_layers` blocks as a scan, parameters stacked along a leading L.

    The block is called with (x_BTD, inputs) and returns x_BTD and what is stacked as outputs.
    """
    if config.remat != "none":
        block = nn.remat(block, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    scan = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=config.n_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(config)
