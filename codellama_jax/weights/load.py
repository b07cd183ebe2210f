"""Loads the weights that a stage starts from: those of a run, or published files.

A host reads only the parts of published files that its devices hold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.checked import FieldError
from codellama_jax.checkpoints import loading
from codellama_jax.checkpoints.base import Base
from codellama_jax.checkpoints.folder import find_trained, trained_identity
from codellama_jax.config import ModelConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.trained import TrainedModel, abstract_params
from codellama_jax.sharding.hosts import is_first
from codellama_jax.sharding.mesh import check_divides, on_mesh
from codellama_jax.system.files import read_file, user_path
from codellama_jax.system.progress import counted
from codellama_jax.system.settings import read_settings
from codellama_jax.tokenizers import byte_bpe, byte_bpe_spec
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.files import FILES, NAMES, load
from codellama_jax.weights import codegeex, gguf_files, huggingface, meta
from codellama_jax.weights.inputs import check_file, file_names
from codellama_jax.weights.layout import Source, dotted, is_stacked, join
from codellama_jax.weights.rows import added_tokens, check_rows, trained_rows, trimmed

OPEN = {
    "hf": huggingface.open_source,
    "meta": meta.open_source,
    "codegeex": codegeex.open_source,
    "gguf": gguf_files.open_source,
}


def kind_of(folder: epath.Path) -> str:
    """Returns the kind of a folder: hf, meta, codegeex or run; a GGUF file is gguf.

    A folder with both config.json and params.json is hf if it has safetensors of transformers.
    Raises UserError for any other.
    """
    if gguf_files.is_file(folder):
        return "gguf"
    names = file_names(folder)
    has_config, has_params = "config.json" in names, "params.json" in names
    if not has_config and not has_params and codegeex.weight_files(folder):
        return "codegeex"
    if not has_config and not has_params:
        gguf_files.check_none(folder)
        expected = "name a run, a GGUF file, or a folder of transformers' or Meta's weights"
        raise UserError(f"{folder} holds neither config.json nor params.json: {expected}")
    if not has_config:
        return "meta"
    # The config.json of a run has "arms", that of a stage "model"; transformers' has neither.
    if {"arms", "model"} & set(read_settings(folder / "config.json").values):
        return "run"
    # Meta also publishes consolidated.safetensors, which transformers does not read.
    is_meta = any(n.startswith("consolidated.") and n.endswith(".pth") for n in names)
    is_hf = any(n.endswith(".safetensors") and not n.startswith("consolidated.") for n in names)
    if not is_meta and not is_hf:
        gguf_files.check_none(folder)  # they may have the config.json of their original
    return "meta" if has_params and is_meta and not is_hf else "hf"


def open_published(folder: epath.Path, kind: str = "") -> tuple[str, Source]:
    """Returns the kind, a key of OPEN, and the source of a folder or a GGUF file.

    The files decide the kind if it is "". Raises UserError for a run.
    """
    kind = kind or kind_of(folder)
    if kind not in OPEN:
        raise UserError(f"{folder} is a run already")
    return kind, OPEN[kind](folder)


def initial_params(stage: Stage, mesh: Mesh) -> Callable[[], dict]:
    """Returns a function that loads the parameters of `stage.init`.

    Everything is checked before it returns. Raises UserError unless `stage.init` is run:DIR,
    run:DIR@STEP, hf:DIR, meta:DIR, codegeex:DIR or gguf:FILE and the shapes equal those of
    `stage.model`.
    """
    kind, _, path = stage.init.partition(":")
    if kind not in ("run", *OPEN) or not path:
        allowed = "scratch, previous, run:DIR, run:DIR@STEP"
        files = "hf:DIR, meta:DIR, codegeex:DIR, gguf:FILE"
        raise UserError(f"init {stage.init!r} is none of {allowed}, {files}")
    if kind == "run":
        base = run_base(stage)
        return lambda: loading.load_params(base.folder, stage.model, mesh, base.step)
    # Headers are read and checked now; values only when the returned function is called.
    source = OPEN[kind](user_path(path))
    tokenizer = published_tokenizer(user_path(path))
    if tokenizer:
        # Rows of padding were never trained: sentinels in their place are drawn like other new
        # entries.
        check_rows(source, tokenizer, added_tokens(user_path(path)))
        model = replace(source.model, vocab_size=trained_rows(source, tokenizer))
        source = replace(source, model=model)
    loading.check_shapes(source.name, source.model, stage.model)
    return lambda: place_params(source, stage.model, mesh)


def run_base(stage: Stage) -> Base:
    """Returns the checkpoint that `stage.init` names, run:DIR or run:DIR@STEP.

    Raises UserError for any other init, and for a run that lacks the step or has another shape.
    """
    kind, _, path = stage.init.partition(":")
    if kind != "run":
        problem = f" is {stage.init}: lora adapts the weights of a run, which its checkpoints name"
        fix = f"make one with `launch.py import {path} RUN`, and give run:RUN"
        raise FieldError(("init",), f"{problem}; {fix}")
    # The folder may be that of a run or of one of its stages, or refer to an equal stage.
    run_path, step = _path_and_step(path)
    folder, saved = find_trained(user_path(run_path))
    loading.check_shapes(folder, saved.model, stage.model)
    folder.steps(step)  # raises UserError if the run has no checkpoint of that step
    return Base(folder, step)


def _path_and_step(path: str) -> tuple[str, int | None]:
    """Returns DIR and STEP of DIR@STEP; STEP is None for DIR."""
    folder, separator, step = path.rpartition("@")
    return (folder, int(step)) if separator and step.isdecimal() else (path, None)


def run_identity(init: str) -> str:
    """Returns the identity of the run that `Stage.init` names, "" for any other or an old run."""
    kind, _, path = init.partition(":")
    return trained_identity(user_path(_path_and_step(path)[0])) if kind == "run" else ""


def tokenizer_of(init: str) -> Tokenizer | None:
    """Returns the tokenizer in the folder that `Stage.init` names, None if it has none."""
    kind, _, path = init.partition(":")
    if kind == "run":
        stage, _ = find_trained(user_path(_path_and_step(path)[0]))
        return stage.load_tokenizer()
    return published_tokenizer(user_path(path)) if path else None


def published_tokenizer(folder: epath.Path) -> Tokenizer | None:
    """Returns the tokenizer in a folder of published weights, None if it has none that is read.

    Of several files the first of `FILES` is read. A tokenizer beside the folder, as Meta publishes
    it, may belong to another model, so it is used only if the user names it. A GGUF file holds its
    tokenizer itself.
    """
    if gguf_files.is_file(folder):
        return gguf_files.read_tokenizer(folder)
    for name in FILES:
        path = folder / name
        if name not in file_names(folder):
            continue
        check_file(path)
        # transformers writes a tokenizer.json for SentencePiece's models too, which is not read.
        if name != byte_bpe.FILE or byte_bpe_spec.is_byte_level(read_file(path)):
            return load(path)
    return None


def model_of(init: str) -> ModelConfig:
    """Returns the config of the model that `Stage.init` names, with entries for the sentinels.

    Raises UserError for weights that do not exist or have no tokenizer.
    """
    kind, _, path = init.partition(":")
    if kind == "run":
        folder, saved = find_trained(user_path(_path_and_step(path)[0]))
        return replace(saved.model, vocab_size=folder.load_tokenizer().vocab_size)
    _, source = open_published(user_path(path), kind)
    return replace(source.model, vocab_size=needed_tokenizer(user_path(path)).vocab_size)


def needed_tokenizer(folder: epath.Path, named: str = "") -> Tokenizer:
    """Returns the tokenizer at the path `named`, or with "" the one in `folder`.

    Raises UserError if there is none.
    """
    if named:
        return load(user_path(named))
    tokenizer = published_tokenizer(folder)
    if tokenizer:
        return tokenizer
    # No tokenizer is guessed: with another model's the weights would load and produce nonsense.
    fix = "name the model's own with --tokenizer"
    if gguf_files.is_file(folder):
        raise UserError(f"{folder} has no tokenizer (tokenizer.ggml.model is missing): {fix}")
    outside = folder.parent / FILES[0]
    if byte_bpe.FILE in file_names(folder):
        fix = f"its {byte_bpe.FILE} is not byte-level BPE; {fix}"
    if outside.exists():
        fix += f" ({outside} is outside the folder, so it is used only when named)"
    raise UserError(f"{folder} has no {NAMES}: {fix}")


def load_published(folder: epath.Path, kind: str, mesh: Mesh) -> TrainedModel:
    """Loads the model and the tokenizer of published weights, without a run.

    Raises UserError for files that are no such weights or hold no tokenizer, and for a mesh that
    does not divide the model.
    """
    kind, source = open_published(folder, kind)
    tokenizer = needed_tokenizer(folder)
    source = trimmed(source, tokenizer, added_tokens(folder))
    check_divides(mesh, source.model, "the least cache, in slots,", 32)
    params = place_params(source, source.model, mesh)
    return TrainedModel(source.model, params, tokenizer, f"{kind}:{folder.name}")


def place_params(source: Source, model: ModelConfig, mesh: Mesh) -> dict:
    """Returns the parameters for `model`, sharded over `mesh`, in float32.

    In addition to them, a host holds at most one layer of one parameter.
    """
    # Read with the vocabulary of the files; `with_rows` adds the entries that `model` has above it.
    as_stored = replace(model, vocab_size=min(model.vocab_size, source.model.vocab_size))
    source = replace(source, model=as_stored)
    abstract = abstract_params(as_stored, mesh)
    with on_mesh(mesh):
        leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
        total = sum(leaf.size for _, leaf in leaves) * 4  # bytes of float32
        with counted("reading", total, unit="bytes", quiet=not is_first()) as advance:
            params = [_placed(source, dotted(path), leaf, advance) for path, leaf in leaves]
    return loading.with_rows(jax.tree.unflatten(tree, params), model, mesh)


def _placed(
    source: Source, param: str, leaf: jax.ShapeDtypeStruct, advance: Callable[[int], None]
) -> jax.Array:
    """Returns a parameter with the shape, type and sharding of `leaf`, read from `source`."""
    if not is_stacked(param):
        advance(leaf.size * 4)

        def shard(index: Any) -> np.ndarray:
            return join(source, param, 0, index).astype(leaf.dtype)

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)
    # A stacked parameter is assembled on the devices, layer by layer. JAX calls the callback once
    # for each shard that this host holds, with its index.
    inner = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
    # Zeros are made on the devices: from the host they would be transferred.
    stack = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
    for layer in range(leaf.shape[0]):
        read = functools.partial(join, source, param, layer)
        layer_part = jax.make_array_from_callback(leaf.shape[1:], inner, read)
        # Without waiting, layers that are not yet copied would fill the memory of the host.
        stack = _with_layer(stack, layer_part, layer).block_until_ready()
        advance(leaf.size // leaf.shape[0] * 4)
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stack: jax.Array, part: jax.Array, layer: int) -> jax.Array:
    """Returns `stack` with `part` as one layer; donation makes the update happen in place."""
    return jax.lax.dynamic_update_index_in_dim(stack, part.astype(stack.dtype), layer, 0)
