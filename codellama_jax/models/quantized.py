"""Quantized weights of the layers' matmuls, which replace arrays in parameters and in decoding.

A weight is stored output-major, each output's inputs one after the other, because scales belong to
outputs and a decoding step reads the weights in this order (`models/llama/decoder.py`). Its inputs
are flattened to one dim. The scales of a weight on a mesh are sharded as its outputs are.

Dims: X outputs (of any number of dims), I inputs, C groups of inputs, N columns, one per token.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from kernels import int8
from kernels.tpu import platform

GROUP = 128  # inputs that share a scale of int4, as in GPTQ
LARGEST_INT4 = 7


class Quantized(abc.ABC):
    """A quantized weight of any scheme."""

    @abc.abstractmethod
    def with_outputs(self, *outputs: int) -> Quantized:
        """Returns the weight with its outputs reshaped."""

    @abc.abstractmethod
    def dequantized(self) -> jax.Array:
        """Returns the weight, fp32 (X, I)."""

    @abc.abstractmethod
    def multiply(self, x_IN: jax.Array) -> jax.Array:
        """Returns the matmul with columns, (X, N) in their dtype."""

    @abc.abstractmethod
    def specs(self, spec: PartitionSpec) -> Any:
        """Returns the PartitionSpecs of its arrays, given that of an array (X, I)."""


Weight = jax.Array | Quantized


@struct.dataclass
class Int8(Quantized):
    """An int8 weight with one scale per output: the weight is about values x scale.

    With `quantizes_inputs` each token's activations are quantized to int8 as well (W8A8), and the
    matmul is int8 x int8 with exact int32 sums.
    """

    values_XI: jax.Array
    scales_X: jax.Array
    quantizes_inputs: bool = struct.field(pytree_node=False, default=False)

    def with_outputs(self, *outputs: int) -> Int8:
        """Returns the weight with its outputs reshaped."""
        values_XI = self.values_XI.reshape(*outputs, self.values_XI.shape[-1])
        scales_X = self.scales_X.reshape(outputs)
        return dataclasses.replace(self, values_XI=values_XI, scales_X=scales_X)

    def dequantized(self) -> jax.Array:
        """Returns the weight, fp32 (X, I)."""
        return self.values_XI.astype(jnp.float32) * self.scales_X.astype(jnp.float32)[..., None]

    def multiply(self, x_IN: jax.Array) -> jax.Array:
        """Returns the matmul with columns, (X, N) in their dtype."""
        if self.quantizes_inputs:
            # Both scales leave the sum: out = scale_X scale_N sum(q x), and the sum is exact in
            # int32.
            columns_IN, scales_N = int8.quantize_columns(x_IN)
            out_XN = int8.int_matmul(self.values_XI, columns_IN).astype(jnp.float32)
            out_XN = int8.scale_columns(out_XN, scales_N)
        else:
            # The scale of an output is a factor of its complete sum, so it is applied once per
            # output and not to each weight.
            out_XN = int8.multiply(self.values_XI, x_IN)
        return int8.scale_rows(out_XN, self.scales_X).astype(x_IN.dtype)

    def specs(self, spec: PartitionSpec) -> Any:
        """Returns the PartitionSpecs of its arrays, given that of an array (X, I)."""
        *outputs, inputs = _padded(spec, self.values_XI.ndim)
        values_spec: Any = PartitionSpec(*outputs, inputs)
        scales_spec: Any = PartitionSpec(*outputs)
        return dataclasses.replace(self, values_XI=values_spec, scales_X=scales_spec)


@struct.dataclass
class Int4(Quantized):
    """A weight of two values per byte, with one scale per output and group of 128 inputs.

    The low four bits of a byte hold an input of the first half of its group, the high four bits the
    input 64 further. The last group is padded with zeros.
    """

    packed_CXB: jax.Array  # int8; B bytes, half a group
    scales_CX: jax.Array
    inputs: int = struct.field(pytree_node=False)

    def with_outputs(self, *outputs: int) -> Int4:
        """Returns the weight with its outputs reshaped."""
        C, *_, B = self.packed_CXB.shape
        packed_CXB = self.packed_CXB.reshape(C, *outputs, B)
        scales_CX = self.scales_CX.reshape(C, *outputs)
        return dataclasses.replace(self, packed_CXB=packed_CXB, scales_CX=scales_CX)

    def dequantized(self) -> jax.Array:
        """Returns the weight, fp32 (X, I)."""
        # Low halves first, as `pack` splits a group in two.
        values_CXG = jnp.concatenate(unpack(self.packed_CXB), axis=-1).astype(jnp.float32)
        values_XCG = jnp.moveaxis(values_CXG * self.scales_CX.astype(jnp.float32)[..., None], 0, -2)
        return values_XCG.reshape(*values_XCG.shape[:-2], -1)[..., : self.inputs]

    def multiply(self, x_IN: jax.Array) -> jax.Array:
        """Returns the matmul with columns, (X, N) in their dtype."""
        # Many columns, or no CPU (see `int8.multiply`): the weight is unpacked and multiplied as
        # floats.
        if not int8.has_digit_columns(x_IN):
            return jnp.tensordot(self.dequantized().astype(x_IN.dtype), x_IN, 1)
        digits_IM, scales_M = int8.split_columns(x_IN)
        # The last group's padding, whose weights are 0.
        digits_IM = jnp.pad(digits_IM, ((0, -self.inputs % GROUP), (0, 0)))
        halves_CBM = jnp.split(digits_IM.reshape(-1, GROUP, digits_IM.shape[1]), 2, axis=1)
        # The sum over the inputs of a group is exact in int32, and over groups in fp32.
        low_CXM, high_CXM = map(
            functools.partial(int8.int_matmul, batch=1), unpack(self.packed_CXB), halves_CBM
        )
        out_CXM = int8.scale_rows((low_CXM + high_CXM).astype(jnp.float32), self.scales_CX)
        out_XM = int8.scale_columns(jnp.sum(out_CXM, axis=0), scales_M)
        return int8.join_columns(out_XM).astype(x_IN.dtype)

    def specs(self, spec: PartitionSpec) -> Any:
        """Returns the PartitionSpecs of its arrays, given that of an array (X, I).

        Groups are sharded as inputs are, where the mesh divides their number.
        """
        *outputs, inputs = _padded(spec, self.packed_CXB.ndim - 1)
        # A group has one scale, so that a shard must hold complete groups.
        mesh = jax.sharding.get_abstract_mesh().shape
        axes = (inputs,) if isinstance(inputs, str) else inputs or ()
        if self.scales_CX.shape[0] % math.prod(mesh.get(axis, 1) for axis in axes):
            inputs = None
        scales_spec: Any = PartitionSpec(inputs, *outputs)
        packed_spec: Any = PartitionSpec(*scales_spec, None)
        return dataclasses.replace(self, packed_CXB=packed_spec, scales_CX=scales_spec)


def is_quantized(leaf: Any) -> bool:
    """Returns whether a node of a tree is a quantized weight."""
    return isinstance(leaf, Quantized)


def _padded(spec: PartitionSpec, ndim: int) -> tuple[Any, ...]:
    return (*spec, *(None,) * (ndim - len(spec)))


def quantize_int8(w_XI: jax.Array) -> Int8:
    """Quantizes to int8 as CodeGeeX does: absmax per output, and the scale rounded to fp16.

    CodeGeeX, section on quantization, and its published code: the values are rounded with the scale
    that is stored. An output of zeros has scale 1. Magnitudes above 127 x 65,504 are clipped.
    """
    scales_X = _half_scales(jnp.max(jnp.abs(w_XI), axis=-1), int8.LARGEST)
    return Int8(_rounded(w_XI, scales_X, int8.LARGEST), scales_X)


def quantize_w8a8(w_XI: jax.Array) -> Int8:
    """Quantizes to int8 as CTranslate2 does: absmax per output, fp32 scales, int8 activations.

    CTranslate2 rounds the embedding and the output head as well. On x86 without VNNI its matmuls
    also saturate at 16 bits, which raises its error to about three times ours (measured on CPU).
    """
    scales_X = int8.scales_of(jnp.max(jnp.abs(w_XI), axis=-1))
    return Int8(_rounded(w_XI, scales_X, int8.LARGEST), scales_X, quantizes_inputs=True)


def quantize_int4(w_XI: jax.Array) -> Int4:
    """Quantizes to values from -7 to 7, absmax per output and group of inputs, fp16 scales.

    CodeGeeX's code has the values and the packing, with one scale per output; GPTQ the groups.
    """
    *outputs, inputs = w_XI.shape
    # Zeros change neither the largest magnitude of the last group nor any sum.
    w_XI = jnp.pad(w_XI, (*((0, 0) for _ in outputs), (0, -inputs % GROUP)))
    w_CXG = jnp.moveaxis(w_XI.reshape(*outputs, -1, GROUP), -2, 0)
    scales_CX = _half_scales(jnp.max(jnp.abs(w_CXG), axis=-1), LARGEST_INT4)
    return Int4(pack(_rounded(w_CXG, scales_CX, LARGEST_INT4)), scales_CX, inputs)


SCHEMES = {"int8": quantize_int8, "w8a8": quantize_w8a8, "int4": quantize_int4}


def quantize_parameter(scheme: str, inputs: int, is_stacked: bool, w: jax.Array) -> Any:
    """Quantizes a parameter, sharded as it is.

    Args:
      scheme: a key of `SCHEMES`.
      inputs: number of input dims of `w`, flattened I.
      is_stacked: whether the parameter is (L, *I, *X); otherwise it is (*I, *X).
      w: the parameter.
    """
    return _quantize(scheme, inputs, is_stacked, _axes_of(w), w)


def _axes_of(w: jax.Array | jax.ShapeDtypeStruct) -> PartitionSpec:
    """Returns the PartitionSpec of a parameter, with an entry for each of its dims."""
    sharding = w.sharding
    spec = sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
    return PartitionSpec(*_padded(spec, len(w.shape)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _quantize(scheme: str, inputs: int, is_stacked: bool, spec: PartitionSpec, w: jax.Array) -> Any:
    """Quantizes a parameter whose PartitionSpec is `spec`; see `quantize_parameter`."""
    weight = quantize_unplaced(scheme, inputs, is_stacked, w)
    if jax.sharding.get_abstract_mesh().size <= 1:
        return weight
    specs = _parameter_specs(scheme, inputs, is_stacked, spec, w)
    return jax.lax.with_sharding_constraint(weight, specs)


def quantize_unplaced(scheme: str, inputs: int, is_stacked: bool, w: jax.Array) -> Any:
    """Quantizes like `quantize_parameter`, and leaves shardings to the compiler."""

    def quantize(w: jax.Array) -> Any:
        # Parameters are input-major; quantized weights have the inputs last.
        rows = w.reshape(-1, *w.shape[inputs:])
        return SCHEMES[scheme](jnp.moveaxis(rows, 0, -1))

    return jax.vmap(quantize)(w) if is_stacked else quantize(w)


def _parameter_specs(
    scheme: str, inputs: int, is_stacked: bool, spec: PartitionSpec, w: jax.Array
) -> Any:
    """Returns the PartitionSpecs of a quantized parameter's arrays; see `quantize_parameter`."""
    leading = tuple(spec)[:1] if is_stacked else ()
    inner = tuple(spec)[len(leading) :]
    # The inputs are flattened: those after the first are never sharded.
    rows = PartitionSpec(*inner[inputs:], inner[0])
    layer_w = jax.ShapeDtypeStruct(w.shape[1:] if is_stacked else w.shape, w.dtype)
    layer = jax.eval_shape(functools.partial(quantize_unplaced, scheme, inputs, False), layer_w)
    return jax.tree.map(
        lambda axes: PartitionSpec(*leading, *axes),
        layer.specs(rows),
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def quantized_shapes(scheme: str, inputs: int, is_stacked: bool, w: jax.ShapeDtypeStruct) -> Any:
    """Returns `quantize_parameter` of a shape on the mesh in use, with shardings."""
    quantize = functools.partial(quantize_unplaced, scheme, inputs, is_stacked)
    specs = _parameter_specs(scheme, inputs, is_stacked, _axes_of(w), w)  # type: ignore[arg-type]
    mesh = w.sharding.mesh

    def placed(a: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, jax.eval_shape(quantize, w), specs)


def _half_scales(largest: jax.Array, most: int) -> jax.Array:
    """Returns fp16 scales with which magnitudes up to `largest` round to `most` at most."""
    scales = jnp.minimum(largest / most, jnp.finfo(jnp.float16).max).astype(jnp.float16)
    # Below 6e-5 fp16 has fewer bits, and rounding down may lose more than half a step.
    is_low = scales.astype(jnp.float32) * (most + 0.5) < largest
    next_bits = jax.lax.bitcast_convert_type(scales, jnp.uint16) + jnp.uint16(1)
    is_finite = scales < jnp.finfo(jnp.float16).max
    raised = jax.lax.bitcast_convert_type(next_bits, jnp.float16)
    scales = jnp.where(is_low & is_finite, raised, scales)
    return jnp.where(largest == 0, jnp.float16(1), scales)


def _rounded(w: jax.Array, scales: jax.Array, most: int) -> jax.Array:
    values = jnp.round(w.astype(jnp.float32) / scales.astype(jnp.float32)[..., None])
    return jnp.clip(values, -most, most).astype(jnp.int8)


def pack(values: jax.Array) -> jax.Array:
    """Packs int8 values from -8 to 7 (..., 2 B) into bytes (..., B), halves side by side."""
    low, high = jnp.split(values, 2, axis=-1)
    return (high << 4) | (low & 15)


def unpack(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the int8 values of the low and of the high four bits of bytes."""
    # The arithmetic shift to the right extends the sign.
    return (packed << 4) >> 4, packed >> 4


def multiply(weight: Weight, x_IN: jax.Array) -> jax.Array:
    """Returns the matmul of an output-major weight (X, I) and columns, (X, N) in their dtype."""
    N, x_IN = x_IN.shape[1], at_least_two_columns(x_IN)
    if isinstance(weight, Quantized):
        out_XN = weight.multiply(x_IN)
    else:
        out_XN = jnp.tensordot(weight, x_IN, 1)
    return out_XN[..., :N]


def at_least_two_columns(x_IN: jax.Array) -> jax.Array:
    """Returns the columns, on a TPU with a column of zeros beside a single one.

    XLA computes a matrix times one column with the vector units of a TPU, in five times the cycles
    that reading the matrix takes. It uses the matrix units from two columns on.
    """
    if x_IN.shape[1] > 1 or platform() != "tpu":
        return x_IN
    return jnp.pad(x_IN, ((0, 0), (0, 1)))


def output_major(weight: Weight, inputs: int, dtype: Any) -> Weight:
    """Returns a layer's parameter (*I, *X) as a matrix (X, I) in `dtype`, `inputs` being I.

    Quantized parameters are output-major already.
    """
    if isinstance(weight, Quantized):
        return weight.with_outputs(-1)
    return weight.astype(dtype).reshape(inputs, -1).T


def input_major(weight: Weight, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Weight:
    """Returns a matrix (X, I) as the parameter (*inputs, *outputs), as `project` reads it.

    It is a view: XLA folds the transpose into the matmul and copies nothing.
    """
    if isinstance(weight, Quantized):
        return weight.with_outputs(*outputs)
    return weight.T.reshape(*inputs, *outputs)


def outputs_first(weight: Weight, outputs: tuple[int, ...], dtype: Any) -> Weight:
    """Returns a layer's parameter (I, *X) as (*outputs, I) in `dtype`, for outputs of several dims.

    Outputs that two shards of a mesh would share if they were flattened keep their dims.
    """
    if isinstance(weight, Quantized):
        return weight.with_outputs(*outputs)
    return jnp.moveaxis(weight.astype(dtype), 0, -1).reshape(*outputs, -1)


def inputs_first(weight: Weight, outputs: tuple[int, ...]) -> Weight:
    """Returns the result of `outputs_first` as the parameter (I, *outputs)."""
    if isinstance(weight, Quantized):
        return weight.with_outputs(*outputs)
    return jnp.moveaxis(weight.reshape(*outputs, -1), -1, 0)
