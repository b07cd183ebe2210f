"""The tensors of published Llama weights, and where each of them lies in our parameters.

Theirs are (outputs, inputs) matrices, one for each layer; ours are input-major, stacked over the layers, and fuse what is computed
together. A `Source` is a model on disk of which any part of any tensor can be read: what imports and exports pass around.
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
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError
from codellama_jax.models.llama import Llama
from codellama_jax.tokenizer import Tokenizer

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # what weights may be stored in, by safetensors' names
OUTSIDE = ("embedding", "final_norm", "head")  # tensors that are not in a layer

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Place:
    """A published tensor is a section of a parameter along one axis, with the axes in another order."""

    param: str
    order: tuple[int, ...]  # the parameter's axes, L left out, that make the rows and then the columns
    rows: int = 1  # how many of them make the rows
    axis: int = 0
    start: int = 0
    size: int = 0  # along `axis`; 0 takes all of it


@dataclass(frozen=True)
class Source:
    """A model on disk."""

    name: str  # its folder, for messages
    model: ModelConfig
    context: int  # positions that it was trained for
    dtypes: dict[str, np.dtype]  # by tensor: the widest of its layers
    read: Callable[[str, int, Index], np.ndarray]  # (tensor, layer, part) -> that part

    def tensor(self, name: str, layer: int = 0) -> np.ndarray:
        """Returns one tensor, whole."""
        return self.read(name, layer, tuple(slice(0, n) for n in shapes(self.model)[name]))


def places(model: ModelConfig) -> dict[str, Place]:
    """Returns where every tensor lies; G query heads, a key and a value stand together for each key head."""
    G = model.n_heads // model.n_kv_heads
    qkv = lambda start, size: Place("layers.attention.qkv", (1, 2, 3, 0), 3, 2, start, size)
    gate_up = lambda start: Place("layers.ffn.gate_up", (1, 2, 0), 2, 1, start, 1)
    return {
        "embedding": Place("embedding", (0, 1)),
        "attention_norm": Place("layers.attention_norm.scale", (0,)),
        "q": qkv(0, G),
        "k": qkv(G, 1),
        "v": qkv(G + 1, 1),
        "o": Place("layers.attention.out", (3, 0, 1, 2)),
        "ffn_norm": Place("layers.ffn_norm.scale", (0,)),
        "gate": gate_up(0),
        "up": gate_up(1),
        "down": Place("layers.ffn.down", (1, 0)),
        "final_norm": Place("final_norm.scale", (0,)),
        "head": Place("head", (1, 0)),
    }


@functools.cache
def parameters(model: ModelConfig) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """Returns shape and logical axes of every parameter by its dotted name; those of the layers begin with L."""
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    boxed = jax.eval_shape(lambda: Llama(model).init(jax.random.key(0), tokens_BT, tokens_BT)["params"])
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
    return {dotted(path): (leaf.value.shape, leaf.names) for path, leaf in leaves}


def dotted(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def is_stacked(param: str) -> bool:
    return param.startswith("layers.")


def one_layer(model: ModelConfig, param: str) -> tuple[int, ...]:
    """Returns the shape of a parameter, L left out."""
    shape = parameters(model)[param][0]
    return shape[1:] if is_stacked(param) else shape


def _section(place: Place, shape: tuple[int, ...]) -> Index:
    whole = [slice(0, n) for n in shape]
    if place.size:
        whole[place.axis] = slice(place.start, place.start + place.size)
    return tuple(whole)


@functools.cache
def shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every published tensor: (outputs, inputs), or (width,) of a norm."""
    found = {}
    for name, place in places(model).items():
        lengths = [s.stop - s.start for s in _section(place, one_layer(model, place.param))]
        rows, columns = ([lengths[axis] for axis in part] for part in (place.order[: place.rows], place.order[place.rows :]))
        found[name] = (math.prod(rows), math.prod(columns)) if columns else (math.prod(rows),)
    return found


def names(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """Yields every (tensor, layer) from the embedding to the head."""
    layered = [name for name in places(model) if name not in OUTSIDE]
    yield "embedding", 0
    for layer in range(model.n_layers):
        yield from ((name, layer) for name in layered)
    yield from (("final_norm", 0), ("head", 0))


def join(source: Source, param: str, layer: int, index: Index) -> np.ndarray:
    """Returns a part of a parameter of ours (`index` without L), reading no more of the source than that.

    Along fused and inner axes, `index` takes everything.
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
        groups = [group for group in (place.order[: place.rows], place.order[place.rows :]) if group]
        part = source.read(name, layer, tuple(_flat([ranges[a] for a in group], [lengths[a] for a in group]) for group in groups))
        parts.append(part.reshape([len(ranges[a]) for a in place.order]).transpose(np.argsort(place.order)))
        axis = place.axis
    return np.concatenate(parts, axis)


def _flat(ranges: list[range], lengths: list[int]) -> slice:
    """Returns the positions that ranges of several axes take once these are one; they follow each other."""
    start = 0
    for part, length in zip(ranges, lengths):
        start = start * length + part.start
    return slice(start, start + math.prod(map(len, ranges)))


def split(model: ModelConfig, name: str, read: Callable[[Index], np.ndarray]) -> np.ndarray:
    """Returns a published tensor, whole; `read` returns a part of the parameter it lies in, L left out."""
    place = places(model)[name]
    return read(_section(place, one_layer(model, place.param))).transpose(place.order).reshape(shapes(model)[name])


def trimmed(source: Source, tokenizer: Tokenizer) -> Source:
    """Drops rows of the vocabulary that the tokenizer has no use for: padding. Sentinel rows stay. Raises UserError if rows are missing."""
    rows = source.model.vocab_size
    if rows < tokenizer.pieces:
        raise UserError(
            f"{source.name} has {rows:,} rows and the tokenizer {tokenizer.pieces:,} pieces: name the right one with --tokenizer"
        )
    listed = len(sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model).pieces) > tokenizer.pieces
    kept = tokenizer.vocab_size if rows == tokenizer.vocab_size or (listed and rows > tokenizer.vocab_size) else tokenizer.pieces
    return replace(source, model=replace(source.model, vocab_size=kept))


def check_tensors(
    folder: str, model: ModelConfig, found: dict[tuple[str, int], tuple[tuple[int, ...], str]], shown: Callable
) -> dict[str, np.dtype]:
    """Returns the dtype of each tensor over all layers. Raises UserError naming what is missing, misshapen or not floating point.

    found: shape and dtype by (tensor, layer). shown: (tensor, layer) -> its name in the file.
    """
    wanted, expected = shapes(model), list(names(model))
    missing = [shown(*key) for key in expected if key not in found]
    if missing:
        raise UserError(f"{folder} lacks {some(missing)}: is every file there?")
    kinds: dict[str, list[str]] = {}
    for key in expected:
        shape, dtype = found[key]
        if shape != wanted[key[0]]:
            raise UserError(f"{folder}: {shown(*key)} has shape {shape} and the config says {wanted[key[0]]}")
        if dtype not in DTYPES.values():
            raise UserError(f"{folder}: {shown(*key)} is {dtype}: weights are read from {', '.join(DTYPES.values())}, not quantised ones")
        kinds.setdefault(key[0], []).append(dtype)
    return {name: functools.reduce(jnp.promote_types, map(jnp.dtype, dtypes)) for name, dtypes in kinds.items()}


def some(names: list[str]) -> str:
    """Returns a list for a message of one line."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def cast(source: Source, dtype: str) -> Source:
    """Returns the source with every tensor rounded to a dtype."""
    kind = jnp.dtype(dtype)
    read = lambda name, layer, index: source.read(name, layer, index).astype(kind)
    return replace(source, dtypes=dict.fromkeys(source.dtypes, kind), read=read)


def source_bytes(source: Source) -> int:
    """Returns the bytes of all tensors."""
    return sum(math.prod(shapes(source.model)[name]) * source.dtypes[name].itemsize for name, _ in names(source.model))
