"""Loads the parameters of a checkpoint to use them: with TensorStore, without the trainer's parts.

Neither Orbax nor optax is imported, so that a prompt is answered sooner. A damaged checkpoint gives
way to the one before it, with a warning.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath
from jax.sharding import Mesh

from codellama_jax.checkpoints import checksums
from codellama_jax.checkpoints.folder import StageFolder, find_trained
from codellama_jax.checkpoints.vocabulary import check_vocabulary, resized
from codellama_jax.config import MeshConfig, ModelConfig
from codellama_jax.errors import UserError
from codellama_jax.models.trained import TrainedModel, abstract_params
from codellama_jax.sharding.hosts import on_all_hosts
from codellama_jax.sharding.mesh import check_divides, make_mesh, on_mesh
from codellama_jax.system.console import warn
from codellama_jax.system.files import is_bucket, read_json, user_path


def silence_orbax() -> None:
    """Keeps Orbax and its event loops from printing the tracebacks of errors that they also raise.

    Every module that imports Orbax calls it: one line of the command reports the error.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error, for a message of one line."""
    # The most common cause, wherever a library has it in its text.
    if "No space left" in str(error):
        return "no space left on the device"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def warn_damaged(checkpoint: epath.Path, error: BaseException) -> None:
    """Prints that a checkpoint is damaged and the one before it is tried."""
    line = first_line(error)
    warn(f"warning: checkpoint {checkpoint} is damaged, trying the one before it ({line})")


def keep_compiled(cache: str) -> None:
    """Keeps compiled programs in the cache, so that a resumed run starts at once.

    A folder that the user chose with JAX_COMPILATION_CACHE_DIR is used instead.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = str(user_path(cache) / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
        # By default JAX keeps only programs that compile for a second. A completion has several
        # smaller ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def read_checksums(checkpoint: epath.Path) -> dict[str, Any] | None:
    """Returns the checksums of a checkpoint, None for one of a version that wrote none.

    `params` and `optimizer` hold a checksum by dotted name of each array (`checksums.of_tree`).
    Raises UserError if the file with them is damaged.
    """
    folder = checkpoint / "checksums"
    if not folder.exists():
        return None
    saved = read_json(folder / "metadata")
    if not isinstance(saved, dict) or not {"params", "optimizer", "cursors"} <= set(saved):
        raise UserError(f"{folder} is damaged")
    return saved


def stored_parameter(checkpoint: epath.Path, name: str) -> dict[str, Any]:
    """Returns TensorStore's spec of a parameter, given its dotted name, as Orbax stores it."""
    # Orbax writes all arrays of a tree into one OCDBT store, each as a zarr array.
    base = (checkpoint / "params").as_posix()
    url = base if is_bucket(base) else f"file://{base}"
    kvstore = {"driver": "ocdbt", "base": f"{url}/", "path": f"{name}/"}
    return {"driver": "zarr", "kvstore": kvstore}


def load_params(
    folder: StageFolder, model: ModelConfig, mesh: Mesh, step: int | None = None
) -> dict:
    """Returns the newest good parameters of a stage, or those of a step, on the mesh.

    They have the shapes of `model`. Raises UserError if there are none, or if they are another
    model's.
    """
    steps = folder.steps(step)
    # The vocabulary is resized after reading: the stored shapes are those of the saved config.
    saved = folder.read_config().model
    check_shapes(folder, saved, model)
    as_saved = dataclasses.replace(model, vocab_size=saved.vocab_size)
    abstract = abstract_params(as_saved, mesh)
    for step in steps:
        checkpoint = folder.checkpoint(step)
        try:
            # All hosts, or none: one that read another checkpoint would hold other parameters.
            params = on_all_hosts(functools.partial(_read, checkpoint, abstract))
            if sums := read_checksums(checkpoint):
                checksums.check(params, sums["params"])
        except UserError as error:
            warn_damaged(checkpoint, error)
        else:
            return with_rows(params, model, mesh)
    raise UserError(f"no checkpoint under {folder} can be read")


def _read(checkpoint: epath.Path, abstract: dict) -> dict:
    """Reads the parts of the parameters that the devices of this host hold.

    Raises UserError with the first line of any error, so that all hosts try the same checkpoint.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    try:
        # Opened together: on an object store each opening waits for an answer.
        opening = [tensorstore.open(stored_parameter(checkpoint, name)) for name in names]
        params = []
        for name, (_, leaf), future in zip(names, leaves, opening):
            params.append(_placed(name, future.result(), leaf))
    except Exception as error:  # TensorStore raises ValueError, OSError and more for damage
        raise UserError(first_line(error)) from error
    return jax.tree.unflatten(tree, params)


def _placed(name: str, store: tensorstore.TensorStore, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns a stored array on the devices. Each part is read once, all of them at the same time.

    Raises ValueError if it is stored with another shape.
    """
    if store.shape != leaf.shape:
        raise ValueError(f"{name} has shape {store.shape}, not {leaf.shape}")
    # Devices that hold the same part share one read. A slice cannot be a key, its text can.
    reads: dict[str, tensorstore.Future] = {}
    for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values():
        if str(index) not in reads:
            reads[str(index)] = store[index].read()

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        return reads[str(index)].result().astype(leaf.dtype, copy=False)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def with_rows(params: dict, model: ModelConfig, mesh: Mesh) -> dict:
    """Returns the parameters with as many vocabulary entries as the model has."""
    rows = model.vocab_size
    if rows == params["embedding"].shape[0]:
        return params
    shardings = jax.tree.map(lambda a: a.sharding, abstract_params(model, mesh))
    resize = functools.partial(resized, rows=rows)
    # Under jit the new entries are made on the devices that hold them.
    with on_mesh(mesh):
        return jax.jit(resize, out_shardings=shardings)(params)


def check_shapes(folder: object, saved: ModelConfig, model: ModelConfig) -> None:
    """Raises UserError if the parameters in a folder are those of a model of another shape.

    Sentinels and padding of the vocabulary may differ.

    Args:
      folder: the folder of the parameters, for the message.
      saved: the model that was saved in it.
      model: the model that the parameters are for.
    """
    if type(saved) is not type(model):
        families = f"{saved.family} there and {model.family} here"
        raise UserError(f"{folder} holds a model of another family: {families}")
    for field in dataclasses.fields(saved):
        # Adjustable fields do not change the stored parameters; the vocabulary is checked below.
        old, new = getattr(saved, field.name), getattr(model, field.name)
        if old != new and field.name not in saved.adjustable:
            change = f"{field.name} is {old} there and {new} here"
            raise UserError(f"{folder} holds another model: {change}")
    check_vocabulary(folder, saved.vocab_size, model.vocab_size)


def load_run(path: str, arm: str = "", stage: str = "", mesh: Mesh | None = None) -> TrainedModel:
    """Loads a run's model and tokenizer, on all devices unless a mesh is given.

    Raises UserError for a run that does not exist, has not trained, or does not fit the mesh.
    """
    # The folder may only point to the one where an equal stage was trained.
    folder, config = find_trained(user_path(path), arm, stage)
    tokenizer, mesh = folder.load_tokenizer(), mesh or make_mesh(MeshConfig())
    check_divides(mesh, config.model, "the least cache, in slots,", 32)
    name = "/".join(folder.path.parts[-3:])
    params = load_params(folder, config.model, mesh)
    return TrainedModel(config.model, params, tokenizer, name, chat=config.data.chat)
