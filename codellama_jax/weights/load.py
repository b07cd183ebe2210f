"""Where a stage's weights come from: a run, or published files, of which each host reads only what its devices hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.config import Stage
from codellama_jax.errors import UserError
from codellama_jax.tokenizer import Tokenizer, load
from codellama_jax.training import checkpoint
from codellama_jax.training.mesh import on_mesh
from codellama_jax.training.step import abstract_state
from codellama_jax.weights import huggingface, meta
from codellama_jax.weights.layout import Source, dotted, is_stacked, join
from codellama_jax.weights.settings import read_json
from codellama_jax.weights.store import progress

OPEN = {"hf": huggingface.open_source, "meta": meta.open_source}


def kind_of(folder: epath.Path) -> str:
    """Returns hf, meta or run. Raises UserError for a folder that is none of them."""
    if (folder / "params.json").exists():
        return "meta"
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds neither config.json nor params.json: name a run, or a folder of transformers' or Meta's weights")
    return "run" if {"arms", "model"} & set(read_json(folder / "config.json")) else "hf"


def open_published(folder: epath.Path) -> tuple[str, Source]:
    """Returns the kind of published weights and their source. Raises UserError for a run, and for what cannot be read."""
    kind = kind_of(folder)
    if kind not in OPEN:
        raise UserError(f"{folder} is a run already")
    return kind, OPEN[kind](folder)


def initial_params(stage: Stage, mesh: Mesh) -> Callable[[], dict]:
    """Returns what loads the parameters of `run:DIR`, `run:DIR@STEP`, `hf:DIR` or `meta:DIR`. Raises UserError if they do not fit."""
    kind, _, place = stage.init.partition(":")
    if kind not in ("run", *OPEN) or not place:
        raise UserError(f"init {stage.init!r} is none of scratch, previous, run:DIR, run:DIR@STEP, hf:DIR, meta:DIR")
    if kind == "run":
        place, step = _at_step(place)
        folder, saved = checkpoint.stage_folder(checkpoint.folder_at(place))
        checkpoint.check_shapes(folder, saved.model, stage.model)
        checkpoint.checkpoint_steps(folder, step)
        return lambda: checkpoint.load_params(folder, stage, mesh, step)
    source = OPEN[kind](checkpoint.folder_at(place))
    checkpoint.check_shapes(source.name, source.model, stage.model)
    return lambda: place_params(source, stage, mesh)


def _at_step(place: str) -> tuple[str, int | None]:
    path, at, step = place.rpartition("@")
    return (path, int(step)) if at and step.isdecimal() else (place, None)


def tokenizer_of(init: str) -> Tokenizer | None:
    """Returns the tokenizer that lies beside the weights of an init; None where there is none, or no weights."""
    kind, _, place = init.partition(":")
    if kind == "run":
        return checkpoint.run_tokenizer(checkpoint.stage_folder(checkpoint.folder_at(_at_step(place)[0]))[0])
    return published_tokenizer(checkpoint.folder_at(place)) if place else None


def published_tokenizer(folder: epath.Path) -> Tokenizer | None:
    """Returns the tokenizer.model in a folder of published weights, or beside it, where Llama 2's is."""
    path = next((f for f in (folder / "tokenizer.model", folder.parent / "tokenizer.model") if f.exists()), None)
    return load(path) if path else None


def place_params(source: Source, stage: Stage, mesh: Mesh) -> dict:
    """Returns the parameters for `stage` on the mesh. A host holds no more than a layer of one parameter beside them."""
    model = replace(stage.model, vocab_size=min(stage.model.vocab_size, source.model.vocab_size))
    source = replace(source, model=model)
    with on_mesh(mesh):
        abstract = abstract_state(replace(stage, model=model), mesh).params
        leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
        with progress("reading", sum(leaf.size for _, leaf in leaves) * 4) as advance:
            params = [_placed(source, dotted(path), leaf, advance) for path, leaf in leaves]
    return checkpoint.with_rows(jax.tree.unflatten(tree, params), stage, mesh)


def _placed(source: Source, param: str, leaf: jax.ShapeDtypeStruct, advance: Callable[[int], None]) -> jax.Array:
    if not is_stacked(param):
        advance(leaf.size * 4)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: join(source, param, 0, index).astype(leaf.dtype))
    inner = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
    stack = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
    for layer in range(leaf.shape[0]):
        read = functools.partial(join, source, param, layer)
        stack = _with_layer(stack, jax.make_array_from_callback(leaf.shape[1:], inner, read), layer).block_until_ready()
        advance(leaf.size // leaf.shape[0] * 4)
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stack: jax.Array, part: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, part.astype(stack.dtype), layer, 0)
