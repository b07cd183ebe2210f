"""The tensors of published weights, and where each of them is stored in our parameters.

Theirs are (outputs, inputs) matrices, one per layer; ours are input-major, stacked over the layers,
and fuse matrices that share an input. A `Source` is a model on disk that any part of any tensor can
be read from: imports and exports pass it around.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError, some
from codellama_jax.models.family import boxed_params, family_of
from codellama_jax.models.published import Place

# The dtypes of weights that can be read, by safetensors' names.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Source:
    """A model on disk."""

    name: str  # its folder, for messages
    model: ModelConfig
    context: int  # positions that it was trained for
    dtypes: dict[str, np.dtype]  # by tensor: the widest of its layers
    read: Callable[[str, int, Index], np.ndarray]  # (tensor, layer, part) -> that part

    def tensor(self, name: str, layer: int = 0) -> np.ndarray:
        """Returns one full tensor."""
        return self.read(name, layer, tuple(slice(0, n) for n in shapes(self.model)[name]))


def places(model: ModelConfig) -> dict[str, Place]:
    """Returns where every published tensor is in our parameters."""
    return family_of(model).places(model)


@functools.cache
def parameters(model: ModelConfig) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """Returns shape and logical axes of every parameter by dotted name; L is the first axis."""
    found = {}
    shapes = jax.eval_shape(lambda: boxed_params(model, jax.random.key(0)))
    boxed = jax.tree_util.tree_leaves_with_path(
        shapes, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )
    for path, leaf in boxed:
        found[dotted(path)] = (leaf.value.shape, leaf.names)
    return found


def dotted(path: tuple) -> str:
    """Returns the dotted name of a leaf of the parameters."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def is_stacked(param: str) -> bool:
    """Returns whether a parameter holds all layers."""
    return param.startswith("layers.")


def one_layer(model: ModelConfig, param: str) -> tuple[int, ...]:
    """Returns the shape of a parameter without L."""
    shape = parameters(model)[param][0]
    return shape[1:] if is_stacked(param) else shape


def _section(place: Place, shape: tuple[int, ...]) -> Index:
    section = [slice(0, n) for n in shape]
    if place.size:
        section[place.axis] = slice(place.start, place.start + place.size)
    return tuple(section)


def shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every published tensor: (outputs, inputs), or (width,) of a norm."""
    found = {}
    for name, place in places(model).items():
        lengths = [
            part.stop - part.start for part in _section(place, one_layer(model, place.param))
        ]
        groups = (place.order[: place.rows], place.order[place.rows :])
        found[name] = tuple(math.prod(lengths[axis] for axis in g) for g in groups if g)
    return found


def names(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """Yields every (tensor, layer) in the order of `places`, each layer's tensors together."""
    stacked = [name for name, place in places(model).items() if is_stacked(place.param)]
    for name in places(model):
        if name not in stacked:
            yield name, 0
        elif name == stacked[0]:
            for layer in range(model.n_layers):
                yield from ((stacked_name, layer) for stacked_name in stacked)


def join(source: Source, param: str, layer: int, index: Index) -> np.ndarray:
    """Returns a part of a parameter of ours, reading no more of the source than that.

    Args:
      source: the published model.
      param: dotted name of the parameter.
      layer: the layer of a stacked parameter, else 0.
      index: the part, without L; it takes all of fused and inner axes.
    """
    shape = one_layer(source.model, param)
    parts, axis = [], 0
    for name, place in places(source.model).items():
        if place.param != param:
            continue
        ranges = [range(*s.indices(n)) for s, n in zip(index, shape)]
        lengths = list(shape)
        if place.size:
            ranges[place.axis], lengths[place.axis] = range(place.size), place.size
        section = []
        for group in (place.order[: place.rows], place.order[place.rows :]):
            if group:
                section.append(_flat([ranges[a] for a in group], [lengths[a] for a in group]))
        part = source.read(name, layer, tuple(section))
        part = part.reshape([len(ranges[a]) for a in place.order])
        parts.append(part.transpose(np.argsort(place.order)))
        axis = place.axis
    return np.concatenate(parts, axis)


def _flat(ranges: list[range], lengths: list[int]) -> slice:
    """Returns the consecutive positions that ranges of several axes take when flattened."""
    start = 0
    for part, length in zip(ranges, lengths):
        start = start * length + part.start
    return slice(start, start + math.prod(map(len, ranges)))


def split(model: ModelConfig, name: str, read: Callable[[Index], np.ndarray]) -> np.ndarray:
    """Returns a full published tensor; `read` returns a part, without L, of its parameter."""
    place = places(model)[name]
    section = read(_section(place, one_layer(model, place.param)))
    return section.transpose(place.order).reshape(shapes(model)[name])


def check_tensors(
    settings: epath.Path,
    model: ModelConfig,
    found: dict[tuple[str, int], tuple[tuple[int, ...], str]],
    file_name: Callable[[str, int], str],
) -> dict[str, np.dtype]:
    """Returns the dtype of each tensor over all layers.

    Args:
      settings: path of the config.json or params.json that describes the model.
      model: that model.
      found: shape and dtype by (tensor, layer).
      file_name: returns a tensor's name in the files.

    Raises UserError naming a tensor that is missing, of another shape, or not floating point.
    """
    folder = settings.parent
    expected = list(names(model))
    missing = [file_name(*key) for key in expected if key not in found]
    if missing:
        raise UserError(f"{folder} lacks {some(missing)}: is every file there?")
    expected_shapes = shapes(model)
    dtypes: dict[str, set[str]] = {}
    for name, layer in expected:
        shape, dtype = found[name, layer]
        described = expected_shapes[name]
        if shape != described:
            sizes = f"has shape {shape}, but {settings.name} describes {described}"
            raise UserError(f"{folder}: {file_name(name, layer)} {sizes}")
        if dtype not in DTYPES.values():
            readable = f"only {', '.join(DTYPES.values())} weights are read, not quantized ones"
            raise UserError(f"{folder}: {file_name(name, layer)} is {dtype}: {readable}")
        dtypes.setdefault(name, set()).add(dtype)
    widest = {}
    for name, kinds in dtypes.items():
        widest[name] = functools.reduce(jnp.promote_types, map(jnp.dtype, kinds))
    return widest


def cast(source: Source, dtype: str) -> Source:
    """Returns the source with every tensor rounded to a dtype."""
    kind = jnp.dtype(dtype)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        return source.read(name, layer, index).astype(kind)

    return replace(source, dtypes=dict.fromkeys(source.dtypes, kind), read=read)


def source_bytes(source: Source) -> int:
    """Returns the bytes of all tensors."""
    total = 0
    where = places(source.model)
    for name, shape in shapes(source.model).items():
        layers = source.model.n_layers if is_stacked(where[name].param) else 1
        total += layers * math.prod(shape) * source.dtypes[name].itemsize
    return total
