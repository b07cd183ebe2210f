"""The parts of a Llama block. Dims: B batch, T length, D model, N query heads, K key/value heads, G = N / K, H head dim, F ffn.

Parameters are fp32 and carry logical axis names; `training/mesh.py` says where each name lies on a mesh. Products run in
`compute_dtype`, norms, angles and softmax in fp32.
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
    """Declares an fp32 weight drawn from a normal of that variance (1 / inputs at most widths), with its logical axes."""
    init = nn.with_logical_partitioning(nn.initializers.normal(variance**0.5), axes)
    return module.param(name, init, shape, jnp.float32)


def mesh_axes(name: str, size: int = 0) -> tuple[str, ...]:
    """Returns the axes of the current mesh that cut a logical axis under the current rules; none where they do not divide `size`."""
    mesh = jax.sharding.get_abstract_mesh().shape
    (axes,) = nn.logical_to_mesh_axes((name,))
    axes = tuple(
        a for a in ((axes,) if isinstance(axes, str) else axes or ()) if mesh.get(a, 1) > 1
    )
    return () if size % math.prod(mesh[a] for a in axes) else axes


def length_shards(length: int = 0) -> int:
    """How many devices of the current mesh share the length of a row; one where they do not divide it."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[a] for a in mesh_axes("length", length))


def dealt(x_BT: jax.Array | None, shards: int) -> jax.Array | None:
    """Puts rows in the order in which ring attention over `shards` devices wants them."""
    return x_BT if x_BT is None or shards == 1 else ring_attention.stripe(x_BT, shards)


def collected(x_BT: jax.Array, shards: int) -> jax.Array:
    """Puts `dealt` rows (B, T, ...) back in their own order."""
    return x_BT if shards == 1 else ring_attention.stripe(x_BT, x_BT.shape[1] // shards)


def project(x_BTD: jax.Array, w_DX: jax.Array) -> jax.Array:
    """Multiplies by a weight of any number of output dims, in x's dtype.

    Rows are flattened to (B T, D) and output dims to one, which XLA's CPU backend trains 1.3 times faster, except where a mesh cuts
    them: a length that is sharded stays as it is, and gate and up flattened together would be cut by neither.
    """
    w_DX = w_DX.astype(x_BTD.dtype)
    rows = x_BTD if length_shards() > 1 else x_BTD.reshape(-1, x_BTD.shape[-1])
    out = (
        jnp.tensordot(rows, w_DX, 1) if mesh_axes("ffn") else rows @ w_DX.reshape(w_DX.shape[0], -1)
    )
    return out.reshape(*x_BTD.shape[:-1], *w_DX.shape[1:])


def rope_angles(
    positions_BT: jax.Array, head_dim: int, theta: float, scaling: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Returns cos_BTH, sin_BTH over half the head, fp32: position / scaling x theta^(-2i / H) (Code Llama, section 2.4).

    A scaling above 1 is linear position interpolation (Chen et al. 2023).
    """
    # Rounded where the published code rounds: one unit in the last place is 1e-3 radians at position 8,191.
    frequencies_H = 1 / (theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angles_BTH = (positions_BT.astype(jnp.float32) / scaling)[..., None] * frequencies_H[None, None]
    return jnp.cos(angles_BTH), jnp.sin(angles_BTH)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array], axis: int = -1) -> jax.Array:
    """Rotates the pairs (i, i + H/2) of every head along `axis` by cos and sin that broadcast to half of x; in fp32, in x's dtype."""
    cos, sin = rope
    a, b = jnp.split(x.astype(jnp.float32), 2, axis)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, axis: int = -1) -> jax.Array:
    """Divides by the root mean square along `axis`, times a scale that broadcasts to x; in fp32, in x's dtype."""
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(x32**2, axis, keepdims=True) + epsilon)
    return (x32 * scale).astype(x.dtype)


class RMSNorm(nn.Module):
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
    rope: tuple[jax.Array, jax.Array]  # cos and sin, BT1H
    keep_kv: bool = struct.field(
        pytree_node=False, default=False
    )  # hand out every layer's keys and values, to go on from them


def attend(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, inputs: Inputs, implementation: str
) -> jax.Array:
    """Returns out_BTNH; a kernel runs on each device's part of the batch and heads, around a ring where the length is cut."""
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


class Attention(nn.Module):
    """Grouped-query attention. One weight holds, for each key head, its G query heads, its key and its value."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, inputs: Inputs
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        c = self.config
        B, T, D = x_BTD.shape
        K, G, H = c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim
        w_qkv = parameter(self, "qkv", (D, K, G + 2, H), ("embed", "heads", None, None), 1 / D)
        w_out = parameter(
            self,
            "out",
            (K, G, H, D),
            ("heads", None, None, "embed"),
            1 / (K * G * H * 2 * c.n_layers),
        )
        qkv_BTKXH = nn.with_logical_constraint(
            project(x_BTD, w_qkv), ("batch", "length", "heads", None, None)
        )
        q_BTNH = rotate(qkv_BTKXH[:, :, :, :G].reshape(B, T, K * G, H), inputs.rope)
        k_BTKH, v_BTKH = rotate(qkv_BTKXH[:, :, :, G], inputs.rope), qkv_BTKXH[:, :, :, G + 1]
        out_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, inputs, c.attention)
        return project(out_BTNH.reshape(B, T, -1), w_out.reshape(-1, D)), (k_BTKH, v_BTKH)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one weight."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        w_gate_up = parameter(
            self, "gate_up", (c.d_model, 2, c.d_ff), ("embed", None, "ffn"), 1 / c.d_model
        )
        w_down = parameter(
            self, "down", (c.d_ff, c.d_model), ("ffn", "embed"), 1 / (c.d_ff * 2 * c.n_layers)
        )
        gate_up_BTXF = nn.with_logical_constraint(
            project(x_BTD, w_gate_up), ("batch", "length", None, "ffn")
        )
        return project(nn.silu(gate_up_BTXF[:, :, 0]) * gate_up_BTXF[:, :, 1], w_down)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, the unit that the scan over layers repeats."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, inputs: Inputs
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        norm = lambda name: RMSNorm(self.config.norm_eps, name=name)
        out_BTD, kv = Attention(self.config, name="attention")(
            norm("attention_norm")(x_BTD), inputs
        )
        x_BTD = x_BTD + out_BTD
        x_BTD = x_BTD + SwiGLU(self.config, name="ffn")(norm("ffn_norm")(x_BTD))
        return nn.with_logical_constraint(
            x_BTD, ("batch", "length", None)
        ), kv if inputs.keep_kv else None
