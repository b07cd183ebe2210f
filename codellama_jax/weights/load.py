"""Weights that a stage starts from: a run, or published files.

Each host reads only the parts of published files that its devices hold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.checkpoints import loading
from codellama_jax.checkpoints.folder import find_trained
from codellama_jax.config import ModelConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.trained import abstract_params
from codellama_jax.sharding.hosts import is_first
from codellama_jax.sharding.mesh import on_mesh
from codellama_jax.system.files import user_path
from codellama_jax.system.progress import counted
from codellama_jax.system.settings import read_settings
from codellama_jax.tokenizers.sentencepiece import Tokenizer, load
from codellama_jax.weights import huggingface, meta
from codellama_jax.weights.inputs import check_file, file_names
from codellama_jax.weights.layout import Source, dotted, is_stacked, join

OPEN = {"hf": huggingface.open_source, "meta": meta.open_source}


def kind_of(folder: epath.Path) -> str:
    """Returns hf, meta or run. Raises UserError for a folder that is none of them.

    A folder in both published layouts is hf, as for transformers, if it has safetensors of them.
    """
    names = file_names(folder)
    has_config, has_params = "config.json" in names, "params.json" in names
    if not has_config and not has_params:
        expected = "name a run, or a folder of transformers' or Meta's weights"
        raise UserError(f"{folder} holds neither config.json nor params.json: {expected}")
    if not has_config:
        return "meta"
    if {"arms", "model"} & set(read_settings(folder / "config.json").values):
        return "run"
    is_meta = any(n.startswith("consolidated.") and n.endswith(".pth") for n in names)
    is_hf = any(n.endswith(".safetensors") and not n.startswith("consolidated.") for n in names)
    return "meta" if has_params and is_meta and not is_hf else "hf"


def open_published(folder: epath.Path) -> tuple[str, Source]:
    """Returns the kind and the source of published weights. Raises UserError for a run."""
    kind = kind_of(folder)
    if kind not in OPEN:
        raise UserError(f"{folder} is a run already")
    return kind, OPEN[kind](folder)


def initial_params(stage: Stage, mesh: Mesh) -> Callable[[], dict]:
    """Returns the function that loads the parameters of `stage.init`.

    Raises UserError unless that is run:DIR, run:DIR@STEP, hf:DIR or meta:DIR and they fit.
    """
    kind, _, place = stage.init.partition(":")
    if kind not in ("run", *OPEN) or not place:
        allowed = "scratch, previous, run:DIR, run:DIR@STEP, hf:DIR, meta:DIR"
        raise UserError(f"init {stage.init!r} is none of {allowed}")
    if kind == "run":
        place, step = _at_step(place)
        folder, saved = find_trained(user_path(place))
        loading.check_shapes(folder, saved.model, stage.model)
        folder.steps(step)
        return lambda: loading.load_params(folder, stage.model, mesh, step)
    source = OPEN[kind](user_path(place))
    loading.check_shapes(source.name, source.model, stage.model)
    return lambda: place_params(source, stage.model, mesh)


def _at_step(place: str) -> tuple[str, int | None]:
    path, at, step = place.rpartition("@")
    return (path, int(step)) if at and step.isdecimal() else (place, None)


def tokenizer_of(init: str) -> Tokenizer | None:
    """Returns the tokenizer in the folder of an init's weights; None if it has none."""
    kind, _, place = init.partition(":")
    if kind == "run":
        stage, _ = find_trained(user_path(_at_step(place)[0]))
        return stage.load_tokenizer()
    return published_tokenizer(user_path(place)) if place else None


def published_tokenizer(folder: epath.Path) -> Tokenizer | None:
    """Returns the tokenizer.model in a folder of published weights; None if it has none.

    One beside the folder may belong to another model, so it is used only when it is named.
    """
    path = folder / "tokenizer.model"
    if path.name not in file_names(folder):
        return None
    check_file(path)
    return load(path)


def needed_tokenizer(folder: epath.Path, named: str = "") -> Tokenizer:
    """Returns the tokenizer that is named, else the folder's own. Raises UserError for none."""
    if named:
        return load(user_path(named))
    tokenizer = published_tokenizer(folder)
    if tokenizer:
        return tokenizer
    outside = folder.parent / "tokenizer.model"
    fix = "name the model's own with --tokenizer"
    if "tokenizer.json" in file_names(folder):
        fix = f"only SentencePiece is read, not its tokenizer.json; {fix}"
    if outside.exists():
        fix += f" ({outside} is outside the folder, so it is used only when named)"
    raise UserError(f"{folder} has no tokenizer.model: {fix}")


def place_params(source: Source, model: ModelConfig, mesh: Mesh) -> dict:
    """Returns the parameters for `model` on the mesh.

    A host holds no more than a layer of one parameter beside them.
    """
    as_stored = replace(model, vocab_size=min(model.vocab_size, source.model.vocab_size))
    source = replace(source, model=as_stored)
    abstract = abstract_params(as_stored, mesh)
    with on_mesh(mesh):
        leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
        total = sum(leaf.size for _, leaf in leaves) * 4
        with counted("reading", total, unit="bytes", quiet=not is_first()) as advance:
            params = [_placed(source, dotted(path), leaf, advance) for path, leaf in leaves]
    return loading.with_rows(jax.tree.unflatten(tree, params), model, mesh)


def _placed(
    source: Source, param: str, leaf: jax.ShapeDtypeStruct, advance: Callable[[int], None]
) -> jax.Array:
    if not is_stacked(param):
        advance(leaf.size * 4)
        return jax.make_array_from_callback(
            leaf.shape,
            leaf.sharding,
            lambda index: join(source, param, 0, index).astype(leaf.dtype),
        )
    inner = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
    stack = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
    for layer in range(leaf.shape[0]):
        read = functools.partial(join, source, param, layer)
        stack = _with_layer(
            stack, jax.make_array_from_callback(leaf.shape[1:], inner, read), layer
        ).block_until_ready()
        advance(leaf.size // leaf.shape[0] * 4)
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stack: jax.Array, part: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, part.astype(stack.dtype), layer, 0)
