"""Translates between the tensors of published weights and the parameters of this project.

A published tensor is an (outputs, inputs) matrix of one layer. A parameter of this project has its
input axes first, is stacked over the layers, and fuses matrices that share an input: one matmul
for q, k and v, one for gate and up.

A `Source` is a model on disk, from which any part of any published tensor can be read. Import,
export and training start from one, for every layout of the files.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from etils import epath

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError, name_list
from codellama_jax.models.family import family_of
from codellama_jax.models.parameters import dotted as dotted
from codellama_jax.models.parameters import is_stacked as is_stacked
from codellama_jax.models.parameters import parameters as parameters
from codellama_jax.models.published import Place

# The dtypes of weights that can be read, by safetensors' names.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Source:
    """A model on disk."""

    name: str  # the folder, for messages
    model: ModelConfig
    context: int  # tokens of the longest sequence that it was trained for
    dtypes: dict[str, np.dtype]  # by tensor name: the widest type of its layers
    read: Callable[[str, int, Index], np.ndarray]  # returns a part of (tensor, layer)
    entries: int = 0  # of the vocabulary without padding, where the layout fixes it; otherwise 0

    def tensor(self, name: str, layer: int = 0) -> np.ndarray:
        """Returns one tensor in full."""
        return self.read(name, layer, tuple(slice(0, n) for n in shapes(self.model)[name]))


def places(model: ModelConfig) -> dict[str, Place]:
    """Returns the place of every published tensor in the parameters, by tensor name."""
    return family_of(model).places(model)


def one_layer(model: ModelConfig, param: str) -> tuple[int, ...]:
    """Returns the shape of a parameter in one layer, which is without L."""
    shape = parameters(model)[param][0]
    return shape[1:] if is_stacked(param) else shape


def _section(place: Place, shape: tuple[int, ...]) -> Index:
    """Returns the part of a fused parameter of this shape that a published tensor is."""
    section = [slice(0, length) for length in shape]
    if place.size:
        section[place.axis] = slice(place.start, place.start + place.size)
    return tuple(section)


def shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every published tensor: (outputs, inputs), or (width,) of a norm."""
    by_name = {}
    for name, place in places(model).items():
        section = _section(place, one_layer(model, place.param))
        lengths = [part.stop - part.start for part in section]
        sizes = []
        for axes in _matrix_axes(place):
            sizes.append(math.prod(lengths[axis] for axis in axes))
        by_name[name] = tuple(sizes)
    return by_name


def _matrix_axes(place: Place) -> list[tuple[int, ...]]:
    """Returns the parameter's axes that make the rows, then those that make the columns.

    For wq of Llama these are [(K, G, H), (D,)]. A norm has no columns.
    """
    groups = (place.order[: place.rows], place.order[place.rows :])
    return [axes for axes in groups if axes]


def names(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """Yields every (tensor, layer) in the order of `places`, with each layer's tensors together."""
    stacked = [name for name, place in places(model).items() if is_stacked(place.param)]
    for name in places(model):
        if name not in stacked:
            yield name, 0
        elif name == stacked[0]:  # all layers are at the position of the first stacked tensor
            for layer in range(model.n_layers):
                for stacked_name in stacked:
                    yield stacked_name, layer


def join(source: Source, param: str, layer: int, index: Index) -> np.ndarray:
    """Returns a part of a parameter and reads no more of the source than that.

    Example: `layers.attention.qkv` has the axes (D, K, G + 2, H). Its part with K from 2 to 4 is
    joined from rows 2 * G * H to 4 * G * H of the published q, and rows 2 * H to 4 * H of k and v.

    Args:
      source: the published model.
      param: the dotted name of the parameter.
      layer: the layer of a stacked parameter, otherwise 0.
      index: the part, without L. It must take fused axes, and axes inside rows or columns that are
        not the first one, in full: such parts are not consecutive in the files.
    """
    shape = one_layer(source.model, param)
    parts, fused_axis = [], 0
    for name, place in places(source.model).items():
        if place.param != param:
            continue
        ranges = [range(*part.indices(length)) for part, length in zip(index, shape)]
        lengths = list(shape)
        # Within the published tensor, the section of a fused axis starts at 0.
        if place.size:
            ranges[place.axis], lengths[place.axis] = range(place.size), place.size
        section = [_flat(ranges, lengths, axes) for axes in _matrix_axes(place)]
        part = source.read(name, layer, tuple(section))
        # From a matrix to the axes that its rows and columns consist of, then to their order in the
        # parameter: argsort gives the inverse of the permutation `order`.
        part = part.reshape([len(ranges[axis]) for axis in place.order])
        parts.append(part.transpose(np.argsort(place.order)))
        fused_axis = place.axis
    return np.concatenate(parts, fused_axis)


def _flat(ranges: list[range], lengths: list[int], axes: tuple[int, ...]) -> slice:
    """Returns the positions that the ranges of `axes` take when these axes are flattened."""
    start, count = 0, 1
    # Row-major: the axes after the first one are taken in full, so that the positions of the part
    # are consecutive, and a start and a count describe them.
    for axis in axes:
        start = start * lengths[axis] + ranges[axis].start
        count *= len(ranges[axis])
    return slice(start, start + count)


def split(model: ModelConfig, name: str, read: Callable[[Index], np.ndarray]) -> np.ndarray:
    """Returns a published tensor in full; the inverse of `join`.

    `read` returns a part, without L, of the parameter that holds it.
    """
    place = places(model)[name]
    # From the parameter's axes (inputs first) to (outputs, inputs), then each group becomes one
    # axis.
    section = read(_section(place, one_layer(model, place.param)))
    return section.transpose(place.order).reshape(shapes(model)[name])


def check_tensors(
    settings: epath.Path,
    model: ModelConfig,
    headers: dict[tuple[str, int], tuple[tuple[int, ...], str]],
    file_name: Callable[[str, int], str],
    file_shapes: dict[str, tuple[int, ...]] | None = None,
) -> dict[str, np.dtype]:
    """Returns the dtype of each tensor, the widest over its layers.

    Args:
      settings: the path of the config.json or params.json that describes the model.
      model: the model that it describes.
      headers: shape and dtype of the stored tensors by (tensor, layer).
      file_name: returns a tensor's name in the files.
      file_shapes: shapes in the files, by tensor; None for those of the published tensors.

    Raises UserError naming a tensor that is missing, of another shape, or not floating point.
    """
    folder = settings.parent
    expected = list(names(model))
    # Before shapes: a truncated download has the right shapes for the tensors that it has.
    missing = [file_name(*key) for key in expected if key not in headers]
    if missing:
        raise UserError(f"{folder} lacks {name_list(missing)}: is the download complete?")
    expected_shapes = file_shapes or shapes(model)
    dtypes: dict[str, set[str]] = {}
    for name, layer in expected:
        shape, dtype = headers[name, layer]
        described = expected_shapes[name]
        if shape != described:
            sizes = f"has shape {shape}, but {settings.name} describes {described}"
            raise UserError(f"{folder}: {file_name(name, layer)} {sizes}")
        if dtype not in DTYPES.values():
            readable = f"only {', '.join(DTYPES.values())} weights are read, not quantized ones"
            raise UserError(f"{folder}: {file_name(name, layer)} is {dtype}: {readable}")
        dtypes.setdefault(name, set()).add(dtype)
    # A parameter stacks the layers, so they need one type, which must not round any of them. Some
    # published files keep a few layers' tensors in float32 and the others in bfloat16.
    widest = {}
    for name, kinds in dtypes.items():
        widest[name] = functools.reduce(jnp.promote_types, map(jnp.dtype, kinds))
    return widest


def cast(source: Source, dtype: str) -> Source:
    """Returns a source whose tensors are rounded to `dtype`."""
    kind = jnp.dtype(dtype)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        return source.read(name, layer, index).astype(kind)

    return replace(source, dtypes=dict.fromkeys(source.dtypes, kind), read=read)


def source_bytes(source: Source) -> int:
    """Returns the size of all tensors in bytes."""
    total = 0
    place_of = places(source.model)
    for name, shape in shapes(source.model).items():
        layers = source.model.n_layers if is_stacked(place_of[name].param) else 1
        total += layers * math.prod(shape) * source.dtypes[name].itemsize
    return total
