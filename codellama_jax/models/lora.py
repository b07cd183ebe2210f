"""Low-rank adapters (LoRA, Hu et al. 2021) of the weights of the layers' matmuls.

A published weight W, (outputs, inputs), is frozen and becomes W + alpha / rank x B A, where A is
(rank, inputs) and B (outputs, rank). B is 0 at first, so that training starts from the frozen
model exactly. Weights that are fused here are separate in published files: each has its own A and
B, so that the adapters of a run can be written as those files' adapters.

In training `joined` puts an `Adapted` in the place of each frozen weight, which `layers.project`
multiplies with. To use the model, `merged` adds the matmuls to the weights once, so that decoding
knows no adapters.

Dims: I inputs, X outputs (of any number of dims), R rank, L layers.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from codellama_jax.checked import FieldError
from codellama_jax.config import LoraConfig, ModelConfig
from codellama_jax.models.family import family_of
from codellama_jax.models.parameters import STACKED, dotted, is_stacked, parameters
from codellama_jax.models.published import Place
from codellama_jax.models.quantized import (
    Quantized,
    Weight,
    is_quantized,
    quantize_parameter,
    quantize_unplaced,
    quantized_shapes,
)

Freeze = Callable[[str, Any], Any]  # of a parameter's dotted name and value
TABLES = ("embedding", "head")  # parameters beside the layers that are stored in the compute dtype


@struct.dataclass
class Adapted:
    """A frozen weight with the adapters of the published weights in it.

    `pairs` holds A (*I, R) and B (R, *X) by published name, and `places` the axis, start and size
    of each among the dims of the weight; size 0 is all of it.
    """

    base: Weight
    pairs: dict[str, dict[str, jax.Array]]
    places: tuple[tuple[str, int, int, int], ...] = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)


@dataclass(frozen=True)
class Slot:
    """Where the adapter of a published weight is.

    Args:
      name: the published weight.
      place: where it is in our parameter, whose axes it counts without L.
      inputs: the number of the parameter's first axes that are inputs.
    """

    name: str
    place: Place
    inputs: int

    def section(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the published weight's part of a parameter of this shape."""
        lengths = list(shape)
        if self.place.size:
            lengths[self.place.axis] = self.place.size
        return tuple(lengths)


def adaptable(model: ModelConfig) -> dict[str, Slot]:
    """Returns the published weights that can have adapters, by name: those of layers' matmuls."""
    family = family_of(model)
    # Published names are the unit of adapters, since one fused weight of ours may hold several.
    slots = {}
    for name, place in family.places(model).items():
        parents, _, last = place.param.rpartition(".")
        if parents and last in family.matmul_inputs:
            slots[name] = Slot(name, place, family.matmul_inputs[last])
    return slots


def slots(model: ModelConfig, lora: LoraConfig) -> list[Slot]:
    """Returns the slots of the targets. Raises FieldError for a target that the model lacks."""
    known = adaptable(model)
    if not known:
        problem = f" is {lora.rank}: the weights of the family {model.family} have no adapters"
        raise FieldError(("lora", "rank"), f"{problem}; leave lora out")
    for name in lora.targets:
        if name not in known:
            allowed = f"this model has {', '.join(known)}"
            raise FieldError(("lora", "targets"), f" has {name!r}: {allowed}")
    return [slot for name, slot in known.items() if name in lora.targets]


def adapter_count(model: ModelConfig, lora: LoraConfig) -> int:
    """Returns the number of trained parameters."""
    # Traced for its shapes alone: plans count adapters of models that are nowhere in memory.
    boxed = jax.eval_shape(lambda: nn.unbox(boxed_adapters(model, lora, jax.random.key(0))))
    return sum(leaf.size for leaf in jax.tree.leaves(boxed))


def boxed_adapters(model: ModelConfig, lora: LoraConfig, key: jax.Array) -> dict:
    """Returns new adapters, fp32, in boxes with their logical axes.

    A is uniform with the bound 1 / sqrt(inputs), as PEFT draws it (Kaiming with a = sqrt(5)), and
    B is 0. The tree has the path of our parameter, then the published name, then `a` or `b`.
    """
    assert lora.rank is not None
    adapters: dict = {}
    for slot in slots(model, lora):
        param = slot.place.param
        shape, axes = parameters(model)[param]
        layers = shape[:1] if is_stacked(param) else ()
        # The adapter has the sharding of its weight along the dims that it shares with it; the rank
        # is never sharded.
        shape, axes = slot.section(shape[len(layers) :]), axes[len(layers) :]
        leading = (STACKED,) * len(layers)
        a_shape = (*layers, *shape[: slot.inputs], lora.rank)
        a_axes = (*leading, *axes[: slot.inputs], None)
        b_shape = (*layers, lora.rank, *shape[slot.inputs :])
        b_axes = (*leading, None, *axes[slot.inputs :])
        bound = math.prod(shape[: slot.inputs]) ** -0.5
        # The key depends on the name alone, so that other targets change no adapter.
        seed = jax.random.fold_in(key, zlib.crc32(f"{param}.{slot.name}".encode()))
        a = jax.random.uniform(seed, a_shape, jnp.float32, -bound, bound)
        pair = {
            "a": nn.LogicallyPartitioned(a, a_axes),
            # B = 0 makes the adapter's matmul 0: the first step starts from the published model.
            "b": nn.LogicallyPartitioned(jnp.zeros(b_shape), b_axes),
        }
        _node(adapters, param)[slot.name] = pair
    return adapters


def _node(tree: dict, path: str) -> dict:
    """Returns the dict at a dotted path of a tree, which it adds where it is missing."""
    for name in path.split("."):
        tree = tree.setdefault(name, {})
    return tree


def pairs_of(adapters: dict, path: str) -> dict:
    """Returns the adapters of a parameter by published name, {} if it has none."""
    for name in path.split("."):
        adapters = adapters.get(name, {})
    return adapters


def joined(model: ModelConfig, lora: LoraConfig, frozen: dict, adapters: dict) -> dict:
    """Returns the parameters that the module trains with: frozen weights and their adapters.

    Every quantized weight becomes an `Adapted`, as only its matmul has a gradient.
    """
    by_param: dict[str, list[Slot]] = {}
    for slot in slots(model, lora):
        by_param.setdefault(slot.place.param, []).append(slot)

    def leaf(path: tuple, base: Weight) -> Any:
        param = dotted(path)
        here = by_param.get(param, [])
        # A weight without adapters needs the wrapper only if it is quantized.
        if not here and not is_quantized(base):
            return base
        places = tuple((s.name, s.place.axis, s.place.start, s.place.size) for s in here)
        return Adapted(base, pairs_of(adapters, param), places, lora.scale)

    return jax.tree_util.tree_map_with_path(leaf, frozen, is_leaf=is_quantized)


def _matmul_inputs(model: ModelConfig, param: str) -> int:
    """Returns the number of input dims of a weight of the layers' matmuls, 0 of other ones."""
    parents, _, last = param.rpartition(".")
    return family_of(model).matmul_inputs.get(last, 0) if parents else 0


def freezer(model: ModelConfig, lora: LoraConfig) -> Freeze:
    """Returns a function of a parameter's dotted name and value that returns it as it is frozen.

    Matrices that a train step rounds to the compute dtype anyway are stored in it, or quantized.
    Norms and biases stay fp32. The function also takes shapes, with shardings on the mesh in use.
    """

    def freeze(param: str, w: Any) -> Any:
        inputs = _matmul_inputs(model, param)
        is_shape = isinstance(w, jax.ShapeDtypeStruct)
        if inputs and lora.quantize_base != "none":
            # One function for arrays and for shapes: plans and checkpoints need the shapes alone.
            quantize: Any = quantized_shapes if is_shape else quantize_parameter
            return quantize(lora.quantize_base, inputs, is_stacked(param), w)
        # Norms and biases are small, and are used in fp32.
        if not inputs and param not in TABLES:
            return w
        if is_shape:
            return jax.ShapeDtypeStruct(w.shape, model.compute_dtype, sharding=w.sharding)
        return w.astype(model.compute_dtype)

    return freeze


def frozen_size(model: ModelConfig, lora: LoraConfig) -> int:
    """Returns the bytes of all parameters of a model as they are frozen."""
    total, dtype = 0, jnp.dtype(model.compute_dtype)
    for param, (shape, _) in parameters(model).items():
        inputs = _matmul_inputs(model, param)
        frozen: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
        if inputs and lora.quantize_base != "none":
            quantize = functools.partial(
                quantize_unplaced, lora.quantize_base, inputs, is_stacked(param)
            )
            frozen = jax.eval_shape(quantize, frozen)
        elif inputs or param in TABLES:
            frozen = jax.ShapeDtypeStruct(shape, dtype)
        total += sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen))
    return total


def merged(model: ModelConfig, lora: LoraConfig, params: dict, adapters: dict) -> dict:
    """Returns fp32 parameters with the adapters added to the weights that they were trained on.

    Args:
      model, lora: the model and its adapters' config.
      params: the parameters as they were before training.
      adapters: as `boxed_adapters` makes them, without boxes.
    """

    def leaf(path: tuple, w: jax.Array) -> jax.Array:
        return merged_parameter(model, lora, dotted(path), w, adapters)

    return jax.tree_util.tree_map_with_path(leaf, params)


def merged_parameter(
    model: ModelConfig, lora: LoraConfig, param: str, w: jax.Array, adapters: dict
) -> jax.Array:
    """Returns one parameter as `merged` returns it; the arguments are those of `merged`."""
    inputs = _matmul_inputs(model, param)
    if not inputs:
        return w
    merge = functools.partial(_merge, lora, inputs, _slots_of(model, lora, param))
    pairs = pairs_of(adapters, param)
    # Layer by layer, because scales of a quantized base belong to one layer's outputs.
    return jax.vmap(merge)(w, pairs) if is_stacked(param) else merge(w, pairs)


def _slots_of(model: ModelConfig, lora: LoraConfig, param: str) -> list[Slot]:
    return [slot for slot in slots(model, lora) if slot.place.param == param]


def _merge(lora: LoraConfig, inputs: int, here: list[Slot], w: jax.Array, pairs: dict) -> jax.Array:
    """Returns one layer's weight (*I, *X) with its adapters."""
    if lora.quantize_base != "none":
        # The adapters were trained beside the rounded weight and correct its errors too, so that
        # they are added to it and not to the original.
        quantized = quantize_unplaced(lora.quantize_base, inputs, False, w)
        w = frozen_matrix(quantized, jnp.float32).reshape(w.shape)
    for slot in here:
        pair = pairs[slot.name]
        with jax.default_matmul_precision("highest"):
            # Merging happens once and can afford full fp32 precision; by default a TPU would
            # multiply in bf16.
            delta = lora.scale * jnp.tensordot(pair["a"], pair["b"], 1)
        place = slot.place
        w += in_section(delta, w.shape, place.axis, place.start, place.size)
    return w


def in_section(part: jax.Array, shape: tuple[int, ...], axis: int, start: int, size: int) -> Any:
    """Returns an array of `shape` with `part` at a section of `axis`, and 0 elsewhere.

    A section of size 0 is the complete axis.
    """
    if not size:
        return part
    padding = [(0, 0)] * len(shape)
    padding[axis] = (start, shape[axis] - start - size)
    return jnp.pad(part, padding)


def frozen_matrix(weight: Quantized, dtype: Any) -> jax.Array:
    """Returns a quantized weight (I, *X), inputs first, in `dtype`."""
    return jnp.moveaxis(weight.dequantized().astype(dtype), -1, 0)
