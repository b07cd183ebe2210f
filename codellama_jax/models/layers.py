"""Layers that model families share.

Dims: B batch, T length, D model, N query heads, K key/value heads, G = N / K, H head dim, F
feed-forward. Parameters are fp32 and carry logical axis names; `sharding/mesh.py` maps each name to
mesh axes. Matmuls run in `compute_dtype`; norms, angles and softmax in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from codellama_jax.config import ModelConfig
from codellama_jax.models.lora import Adapted, frozen_matrix, in_section
from codellama_jax.models.quantized import Quantized, Weight
from codellama_jax.models.rounded_matmul import is_faster, keeps_matmul, rounded_matmul
from kernels import flash_attention, ring_attention
from kernels.tpu import platform

# Adds a bias and a constraint to the given part of a matmul's result (see `project_sections`).
Finish = Callable[[jax.Array, slice], jax.Array]


def parameter(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    variance: float,
) -> jax.Array:
    """Declares an fp32 weight with its logical axes, drawn from a normal distribution.

    Where the parameters hold a quantized or an adapted weight of that name, which `project` reads,
    returns it.

    Args:
      module: the module that owns it.
      name, shape: of the weight.
      axes: the logical axis of each dimension; None is never sharded.
      variance: of the distribution; 1 / inputs keeps activations at unit scale.
    """
    stored: Any = module.get_variable("params", name)
    if isinstance(stored, Quantized | Adapted):
        return cast(jax.Array, stored)
    init = nn.with_logical_partitioning(nn.initializers.normal(variance**0.5), axes)
    # Linen removes the box that carries the logical axes, which its annotation leaves out.
    return cast(jax.Array, module.param(name, init, shape, jnp.float32))


def bias_parameter(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> jax.Array:
    """Declares an fp32 bias with its logical axes, 0 at first."""
    init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
    return cast(jax.Array, module.param(name, init, shape, jnp.float32))


def mesh_axes(name: str, size: int = 0) -> tuple[str, ...]:
    """Returns the axes of the current mesh that shard a logical axis under the current rules.

    There are none where they do not divide `size`.
    """
    mesh = jax.sharding.get_abstract_mesh().shape
    (rule,) = nn.logical_to_mesh_axes((name,)) or (None,)
    candidates = (rule,) if isinstance(rule, str) else rule or ()
    # Axes of size 1 shard nothing. Left in, they would start collectives of one device.
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


def striped(x_BT: jax.Array, shards: int) -> jax.Array:
    """Orders the tokens of sequences (B, T, ...) for ring attention over `shards` devices.

    Device i gets the tokens i, i + shards, ... of every sequence, so that causal attention costs
    all devices the same.
    """
    return x_BT if shards == 1 else ring_attention.stripe(x_BT, shards)


def unstriped(x_BT: jax.Array, shards: int) -> jax.Array:
    """Returns `striped` sequences (B, T, ...) in their natural order."""
    return x_BT if shards == 1 else ring_attention.stripe(x_BT, x_BT.shape[1] // shards)


def keeps_dims() -> bool:
    """Returns whether the program is for a TPU, whose matmuls keep the dims of their operands.

    A TPU's memory layouts tile the last two dims of an array. Flattening dims therefore copies the
    array, as does slicing the output of a matmul. With one matmul per section of a fused weight
    and no flattened dims, a 7B layer on one v6e device writes 3.2 GiB of copies per train step
    instead of 9.1. CPUs are faster with one 2-D matmul.
    """
    return platform() == "tpu"


def project(x_BTD: jax.Array, w_DX: Weight | Adapted, inputs: int = 1) -> jax.Array:
    """Multiplies by a weight of any number of output dims, in x's dtype.

    The result has the dims of x without D, and then those of the weight without D.

    Args:
      x_BTD: activations.
      w_DX: the weight; its first `inputs` dims are D, flattened.
      inputs: see above. A quantized weight has flattened them already.
    """
    if isinstance(w_DX, Adapted):
        return _project_adapted(x_BTD, w_DX, inputs)
    if isinstance(w_DX, Quantized):
        # Columns, as in decoding. A length that is sharded stays a dim here too.
        columns_BTD = x_BTD if length_shards() > 1 else x_BTD.reshape(-1, x_BTD.shape[-1])
        out_XBT = w_DX.multiply(jnp.moveaxis(columns_BTD, -1, 0))
        columns = tuple(range(columns_BTD.ndim - 1))
        out_BTX = jnp.moveaxis(out_XBT, [axis - len(columns) for axis in columns], columns)
        return out_BTX.reshape(*x_BTD.shape[:-1], *out_BTX.shape[len(columns) :])
    if is_faster(x_BTD.dtype) and not mesh_axes("ffn") and length_shards() == 1:
        out = rounded_matmul(x_BTD, w_DX.reshape(x_BTD.shape[-1], -1))
        return out.reshape(*x_BTD.shape[:-1], *w_DX.shape[inputs:])
    w_DX = w_DX.astype(x_BTD.dtype)
    if keeps_dims():
        dims = w_DX.shape[:inputs]
        x = x_BTD.reshape(*x_BTD.shape[:-1], *dims)
        axes_of_x = tuple(range(x.ndim - inputs, x.ndim))
        return jax.lax.dot_general(x, w_DX, ((axes_of_x, tuple(range(inputs))), ((), ())))
    w_DX = w_DX.reshape(-1, *w_DX.shape[inputs:])
    # One large 2-D matmul: XLA's CPU backend trains 1.3 times faster than with 3-D operands. A
    # length that is sharded stays a dim, because flattening it with B would gather it.
    x = x_BTD if length_shards() > 1 else x_BTD.reshape(-1, x_BTD.shape[-1])
    if mesh_axes("ffn"):
        # Gate and up, flattened to one dim, would each end in the middle of a shard.
        out = jnp.tensordot(x, w_DX, 1)
    else:
        out = x @ w_DX.reshape(w_DX.shape[0], -1)
    return out.reshape(*x_BTD.shape[:-1], *w_DX.shape[1:])


def project_sections(
    x_BTD: jax.Array, w_DX: Weight | Adapted, axis: int, sections: tuple[slice, ...], finish: Finish
) -> list[jax.Array]:
    """Multiplies by a fused weight and returns sections of the result.

    Args:
      x_BTD: activations.
      w_DX: the weight; its first dim is D.
      axis: the axis of the weight that fuses the sections.
      sections: the part of `axis` of each section.
      finish: adds a bias and a constraint to a result with all dims of the weight, given the part
        of `axis` that it has.
    """
    everything = slice(None)
    leading = (everything,) * axis
    if isinstance(w_DX, jax.Array) and keeps_dims():
        w_DX = w_DX.astype(x_BTD.dtype)
        parts = [(w_DX[(*leading, section)], section) for section in sections]
        return [finish(project(x_BTD, part), section) for part, section in parts]
    out = finish(project(x_BTD, w_DX), everything)
    leading += (everything,) * (x_BTD.ndim - 2)
    return [out[(*leading, section)] for section in sections]


def _project_adapted(x_BTD: jax.Array, weight: Adapted, inputs: int) -> jax.Array:
    """Multiplies by a frozen weight and adds alpha / rank x (x A) B of each adapter in it."""
    if isinstance(weight.base, Quantized):
        # The matmul of a quantized weight rounds activations and has no gradient. The dequantized
        # weight has one; it is computed again in the backward pass, and never kept for all layers.
        out = jax.checkpoint(_project_dequantized, prevent_cse=False)(x_BTD, weight.base)
    else:
        out = project(x_BTD, weight.base, inputs)
    # The output has the dims of x but its last in place of the weight's inputs.
    offset = x_BTD.ndim - 1 - inputs
    for name, axis, start, size in weight.places:
        pair = weight.pairs[name]
        low_BTR = project(x_BTD, pair["a"], inputs) * weight.scale
        part = project(low_BTR, pair["b"])
        out += in_section(part, out.shape, offset + axis, start, size)
    return out


def _project_dequantized(x_BTD: jax.Array, weight: Quantized) -> jax.Array:
    return project(x_BTD, frozen_matrix(weight, x_BTD.dtype))


def rope_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Returns theta^(-2i / H) for each pair i of a head, fp32 [H / 2]."""
    # The published code rounds to fp32 before the division. One unit in the last place would be
    # 1e-3 radians at position 8,191.
    return 1 / (theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)


def rope_angles(
    positions_BT: jax.Array, head_dim: int, theta: float, scaling: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Returns cos_BTH and sin_BTH over half the head, fp32.

    The angle is position / scaling x theta^(-2i / H) (Code Llama, section 2.4). A scaling above 1
    is linear position interpolation (Chen et al. 2023).
    """
    frequencies_H = rope_frequencies(head_dim, theta)
    angles_BTH = (positions_BT.astype(jnp.float32) / scaling)[..., None] * frequencies_H[None, None]
    return jnp.cos(angles_BTH), jnp.sin(angles_BTH)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array], axis: int = -1) -> jax.Array:
    """Rotates the pairs (i, i + H/2) of every head along `axis`, in fp32; returns x's dtype.

    `rope` holds cos and sin, which broadcast to half of x. They depend on integer positions alone
    and get no gradient on TPUs.
    """
    cos, sin = rope
    if axis == -1 and keeps_dims():
        return _rotate_by_matmul(x, cos, sin)
    # Halves, as in transformers: no strided access, unlike pairs of neighbours.
    a, b = jnp.split(x.astype(jnp.float32), 2, axis)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis).astype(x.dtype)


@jax.custom_vjp
def _rotate_by_matmul(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Computes `rotate` along the last axis, for TPUs.

    There XLA writes the halves of every head to memory in fp32 before it swaps them. A matmul with
    a signed permutation swaps them on the way, and is exact: each sum has one term. Projecting and
    rotating the queries of a 7B layer takes 0.50 (v6e), 0.55 (tpu7x), 0.71 (v5e) and 0.77 (v5p) of
    the compiler's cycles without it.
    """
    H = x.shape[-1]
    half = np.arange(H // 2)
    turn_HH = np.zeros((H, H), np.float32)
    turn_HH[half + H // 2, half] = -1
    turn_HH[half, half + H // 2] = 1
    # fp32 activations take the several bf16 passes that keep their precision.
    is_fp32 = x.dtype == jnp.float32
    turned = jnp.matmul(
        x,
        jnp.asarray(turn_HH, x.dtype),
        precision=jax.lax.Precision.HIGHEST if is_fp32 else None,
        preferred_element_type=jnp.float32,
    )
    cos, sin = (jnp.concatenate([a, a], axis=-1) for a in (cos, sin))
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)


def _rotate_forward(
    x: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rotate_by_matmul(x, cos, sin), (cos, sin)


def _rotate_backward(angles: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[Any, ...]:
    # The transpose of a rotation is the rotation by the negative angle. Derived by JAX it would be
    # a matmul of fp32 gradients.
    cos, sin = angles
    return _rotate_by_matmul(dy, cos, -sin), jnp.zeros_like(cos), jnp.zeros_like(sin)


_rotate_by_matmul.defvjp(_rotate_forward, _rotate_backward)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, axis: int = -1) -> jax.Array:
    """Divides by the root mean square along `axis`; computes in fp32, returns x's dtype.

    `scale` broadcasts to x.
    """
    # bf16 has 8 bits of mantissa: a mean of thousands of squares needs more.
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(x32**2, axis, keepdims=True) + epsilon)
    return (x32 * scale).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root mean square normalization with a learned scale (Zhang and Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the normalized activations, in their dtype."""
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale_D = cast(jax.Array, self.param("scale", init, x_BTD.shape[-1:], jnp.float32))
        return rms_norm(x_BTD, scale_D[None, None], self.epsilon)


@struct.dataclass
class Inputs:
    """The inputs of every layer beside its activations."""

    positions_BT: jax.Array
    segment_ids_BT: jax.Array | None
    rope: tuple[jax.Array, jax.Array] | None = None  # cos and sin, BT1H
    # Whether to return every layer's keys and values, for decoding to continue from.
    keep_kv: bool = struct.field(pytree_node=False, default=False)
    # The number of each sequence in the global batch, for dropout; None drops nothing.
    sequences_B: jax.Array | None = None


def kept(key: jax.Array, sequences_B: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Returns fp32 factors (B, *shape) of dropout: 0 with probability `rate`, else 1 / (1 - rate).

    Those of a sequence are a function of the key and its number: neither micro-batches nor the
    mesh change them.
    """

    def of_sequence(number: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, shape)

    return jax.vmap(of_sequence)(sequences_B) / (1 - rate)


def dropout(
    module: nn.Module, x_BTD: jax.Array, rate: float, sequences_B: jax.Array | None
) -> jax.Array:
    """Returns activations of which training drops a share `rate`; others change nothing.

    Args:
      module: draws its keys from the collection `dropout`, which has one per layer.
      x_BTD: activations, striped over the devices that share the length.
      rate: the share.
      sequences_B: as in `Inputs`.
    """
    if not rate or sequences_B is None:
        return x_BTD
    kept_BTD = kept(module.make_rng("dropout"), sequences_B, rate, x_BTD.shape[1:])
    # The factors are drawn in the sequence's natural order, which every mesh shares.
    kept_BTD = striped(kept_BTD, length_shards(x_BTD.shape[1]))
    kept_BTD = nn.with_logical_constraint(kept_BTD, ("batch", "length", None))
    return x_BTD * kept_BTD.astype(x_BTD.dtype)


def attend(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, inputs: Inputs, implementation: str
) -> jax.Array:
    """Returns out_BTNH of causal attention.

    A kernel runs on each device's shard of the batch and heads, in a ring where the length is
    sharded. Key heads that the mesh does not divide (one, in multi-query attention) are repeated
    until it does.

    Args:
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values, in the compute dtype.
      inputs: positions, and the segments that tokens must not look out of.
      implementation: one of those of `kernels`; "" takes the fastest.
    """
    # A kernel runs on local arrays, so query heads and their key heads must be on one device.
    repeats = _head_repeats(q_BTNH.shape[2], k_BTKH.shape[2])
    if repeats > 1:
        k_BTKH, v_BTKH = jnp.repeat(k_BTKH, repeats, axis=2), jnp.repeat(v_BTKH, repeats, axis=2)
    B, T, K, _ = k_BTKH.shape
    batch_axes, head_axes = mesh_axes("batch", B), mesh_axes("heads", K)
    if length_axes := mesh_axes("length", T):
        return ring_attention.attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            segments_BT=inputs.segment_ids_BT,
            batch_axes=batch_axes,
            length_axes=length_axes,
            head_axes=head_axes,
            implementation=implementation,
        )
    return flash_attention.attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        q_positions_BT=inputs.positions_BT,
        kv_positions_BS=inputs.positions_BT,
        q_segments_BT=inputs.segment_ids_BT,
        kv_segments_BS=inputs.segment_ids_BT,
        batch_axes=batch_axes,
        head_axes=head_axes,
        implementation=implementation,
    )


def _head_repeats(n_heads: int, n_kv_heads: int) -> int:
    """Returns how often each key head is repeated so that the mesh divides them, 1 if it cannot."""
    devices = _devices(mesh_axes("heads"))
    repeats = math.lcm(n_kv_heads, devices) // n_kv_heads
    return 1 if n_heads % (n_kv_heads * repeats) else repeats


# By the config's `remat`: the activations that are kept for the backward pass. It computes the
# others again.
REMAT_POLICIES = {
    "full": None,  # only the input of every layer
    # Also the results of matmuls with weights, which cost the most to compute again.
    "dots": keeps_matmul,
}

# Largest number of layers that a CPU unrolls, so that compiling stays short.
MAX_UNROLLED = 8


def unrolled_layers(config: ModelConfig) -> int:
    """Returns the number of layers in an iteration of the scan over layers.

    On a CPU a scan copies each activation that the backward pass needs into an array of all layers,
    which it has filled with zeros before. Unrolled, a train step of the toy model takes 0.87 of the
    processor time. Rematerialization needs the loop: without it XLA would merge the activations
    that it computes again with the first ones, and keep them.
    """
    is_unrolled = platform() == "cpu" and config.remat == "none" and config.n_layers <= MAX_UNROLLED
    return config.n_layers if is_unrolled else 1


def stacked(block: type[nn.Module], config: ModelConfig) -> nn.Module:
    """Returns `n_layers` blocks as a scan, parameters stacked along a leading L.

    The block is called with (x_BTD, inputs) and returns x_BTD and outputs, which are stacked.
    """
    # A scan compiles one layer instead of `n_layers`: the pod compiler needs seconds, not minutes.
    if config.remat != "none":
        block = nn.remat(block, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    scan = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=config.n_layers,
        unroll=unrolled_layers(config),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(config)


class LanguageModel(nn.Module):
    """Base of a model of a family, which adds `setup` and `hidden` (see `Family.module`).

    `setup` declares `embedding_VD` and, where the embeddings are not tied, `head_DV`.
    """

    config: Any

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Returns fp32 logits_BTV."""
        head_DV = self.embedding_VD.T if self.config.tied_embeddings else self.head_DV
        return jnp.matmul(x_BTD, head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segment_ids_BT: jax.Array | None = None
    ) -> jax.Array:
        """Returns fp32 logits_BTV."""
        return self.unembed(self.hidden(tokens_BT, positions_BT, segment_ids_BT))
