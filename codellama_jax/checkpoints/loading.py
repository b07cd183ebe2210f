"""Loads the parameters of a checkpoint to use them: with TensorStore, without the trainer's parts.

Neither Orbax nor optax is imported, so that a prompt is answered sooner. A damaged checkpoint gives
way to the one before it, with a warning.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath
from jax.sharding import Mesh

from codellama_jax.checkpoints import checksums
from codellama_jax.checkpoints.base import Base, recorded_base
from codellama_jax.checkpoints.folder import StageFolder, find_trained
from codellama_jax.checkpoints.vocabulary import check_vocabulary, resized
from codellama_jax.config import LoraConfig, MeshConfig, ModelConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.lora import TABLES, Freeze, freezer, merged
from codellama_jax.models.parameters import dotted
from codellama_jax.models.trained import TrainedModel, abstract_adapters, abstract_params
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
    values = saved if isinstance(saved, dict) else {}
    by_name = [values.get("params"), values.get("optimizer")]
    if "cursors" not in values or not all(isinstance(sums, dict) for sums in by_name):
        raise UserError(f"{folder} is damaged")
    return values


def stored_array(checkpoint: epath.Path, name: str, item: str = "params") -> dict[str, Any]:
    """Returns TensorStore's spec of an array of an item, given its dotted name, as Orbax stores it.

    By default it is a parameter.
    """
    # Orbax writes all arrays of a tree into one OCDBT store, each as a zarr array.
    base = (checkpoint / item).as_posix()
    url = base if is_bucket(base) else f"file://{base}"
    kvstore = {"driver": "ocdbt", "base": f"{url}/", "path": f"{name}/"}
    return {"driver": "zarr", "kvstore": kvstore}


def load_adapters(folder: StageFolder, stage: Stage, mesh: Mesh) -> tuple[dict, Base]:
    """Returns the newest adapters of a stage, and the base that its checkpoint names.

    Raises UserError if they cannot be read.
    """
    checkpoint = folder.checkpoint(max(folder.steps()))
    abstract = abstract_adapters(stage.model, stage.lora, mesh)
    adapters, _ = _read(checkpoint, abstract, freeze=None, identify=False)
    return adapters, recorded_base(checkpoint)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters with the step of their checkpoint, and a hash of its checksums."""

    params: dict
    step: int
    identity: str


def load_params(
    folder: StageFolder, model: ModelConfig, mesh: Mesh, step: int | None = None
) -> dict:
    """Returns the newest good parameters of a stage, or those of a step, on the mesh.

    They have the shapes of `model`; adapters are added to the weights that they were trained on.
    Raises UserError if there are none, or if they are another model's.
    """
    return _load(folder, model, mesh, step).params


def load_frozen(stage: Stage, base: Base, mesh: Mesh) -> tuple[dict, Base]:
    """Returns the weights that a stage adds adapters to, as it freezes them, and what was read.

    Raises UserError if they are not the weights of `base.identity`, or cannot be read.
    """
    freeze = freezer(stage.model, stage.lora)
    with on_mesh(mesh):
        loaded = _load(base.folder, stage.model, mesh, base.step, freeze)
        read = base.read_as(loaded.step, loaded.identity)
        # These may have been resized, for which they were still float32.
        tables = {name: loaded.params[name] for name in TABLES if name in loaded.params}
        frozen = {name: freeze(name, table) for name, table in tables.items()}
    return loaded.params | frozen, read


def _load(
    folder: StageFolder,
    model: ModelConfig,
    mesh: Mesh,
    step: int | None,
    freeze: Freeze | None = None,
    identify: bool = False,
) -> Loaded:
    """Loads parameters like `load_params`.

    Args:
      folder, model, mesh, step: as for `load_params`.
      freeze: replaces all parameters but TABLES, given their dotted names; None keeps them.
      identify: whether the result needs its identity, "" otherwise in runs without checksums.
    """
    steps = folder.steps(step)
    config = folder.read_config()
    # The vocabulary is resized after reading: the stored shapes are those of the saved config.
    check_shapes(folder, config.model, model)
    as_saved = dataclasses.replace(model, vocab_size=config.model.vocab_size)
    has_adapters = config.lora.rank is not None
    if has_adapters:
        abstract = abstract_adapters(as_saved, config.lora, mesh)
    else:
        abstract = abstract_params(as_saved, mesh)
    for step in steps:
        checkpoint = folder.checkpoint(step)
        try:
            params, identity = _read(checkpoint, abstract, freeze, identify or has_adapters)
            base = recorded_base(checkpoint) if has_adapters else None
        except UserError as error:
            warn_damaged(checkpoint, error)
            continue
        if base:
            # Outside of `try`: without its base no other checkpoint can be used either.
            merged, base = _merged(base, as_saved, config.lora, params, mesh)
            # The identity of a model with adapters covers both: the adapters and the weights below
            # them.
            params, identity = merged, checksums.of_json([identity, base.identity])
            if freeze:
                params = _frozen(params, freeze)
        return Loaded(with_rows(params, model, mesh), step, identity)
    raise UserError(f"no checkpoint under {folder} can be read")


def _merged(
    base: Base, model: ModelConfig, lora: LoraConfig, adapters: dict, mesh: Mesh
) -> tuple[dict, Base]:
    """Returns the parameters of a base with adapters added to them, and the base as it was read."""
    if not base.folder.path.exists():
        problem = f"there is no folder {base.folder}, whose weights the adapters are added to"
        raise UserError(f"{problem}: put the run back")
    loaded = _load(base.folder, model, mesh, base.step, identify=True)
    read = base.read_as(loaded.step, loaded.identity)
    # The sums keep the sharding of the base; otherwise XLA could choose another one.
    shardings = jax.tree.map(lambda a: a.sharding, loaded.params)
    merge = functools.partial(merged, model, lora)
    with on_mesh(mesh):
        # The buffers of the base are reused.
        add = jax.jit(merge, out_shardings=shardings, donate_argnums=0)
        return add(loaded.params, adapters), read


def _frozen(params: dict, freeze: Freeze) -> dict:
    """Returns parameters with all but TABLES replaced by `freeze`."""

    def leaf(path: tuple, array: jax.Array) -> Any:
        name = dotted(path)
        return array if name in TABLES else freeze(name, array)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _read(
    checkpoint: epath.Path, abstract: dict, freeze: Freeze | None, identify: bool
) -> tuple[dict, str]:
    """Reads the parts of the parameters that the devices of this host hold.

    Returns them with a hash of their checksums. Raises UserError for an error on any host, so that
    all hosts try the same checkpoint: one that read another would hold other parameters.

    Args:
      checkpoint: the folder.
      abstract: shapes, dtypes and shardings of the parameters.
      freeze, identify: as for `_load`.
    """
    params: list[Any] = []
    sums: dict[str, int] = {}
    for name, array in _arrays(checkpoint, "params", abstract):
        if freeze:
            # One by one: at most one parameter is in memory both as float32 and as it is frozen.
            sums |= checksums.of_tree({name: array})
            array = array if name in TABLES else freeze(name, array)
        params.append(array)
    tree = jax.tree.structure(abstract)
    saved = on_all_hosts(functools.partial(read_checksums, checkpoint))
    if not freeze and (saved or identify):
        sums = checksums.of_tree(jax.tree.unflatten(tree, params))
    if saved:
        checksums.compare(sums, saved["params"])
    return jax.tree.unflatten(tree, params), checksums.of_json(sums)


def read_item(checkpoint: epath.Path, item: str, abstract: Any) -> Any:
    """Reads the parts of an item's arrays that the devices of this host hold, a tree like abstract.

    Raises UserError for an error on any host.

    Args:
      checkpoint: the folder.
      item: `params` or `optimizer`.
      abstract: shapes, dtypes and shardings of the arrays.
    """
    arrays = [array for _, array in _arrays(checkpoint, item, abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def _arrays(checkpoint: epath.Path, item: str, abstract: Any) -> Iterator[tuple[str, jax.Array]]:
    """Yields the dotted name of each array of an item, and the array; see `read_item`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(abstract)
    names = [dotted(path) for path, _ in leaves]
    # Opened together: on an object store each opening waits for an answer.
    opening = on_all_hosts(functools.partial(_opened, checkpoint, item, names))
    for name, (_, leaf), store in zip(names, leaves, opening):
        yield name, on_all_hosts(functools.partial(_placed, name, store, leaf))


def _opened(checkpoint: epath.Path, item: str, names: list[str]) -> list[tensorstore.TensorStore]:
    """Opens stored arrays. Raises UserError with the first line of any error."""
    try:
        opening = [tensorstore.open(stored_array(checkpoint, name, item)) for name in names]
        return [future.result() for future in opening]
    except Exception as error:  # TensorStore raises ValueError, OSError and more for damage
        raise UserError(first_line(error)) from error


def _placed(name: str, store: tensorstore.TensorStore, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns a stored array on the devices. Each part is read once, all of them at the same time.

    Raises UserError if it is stored with another shape, or with the first line of any error.
    """
    if store.shape != leaf.shape:
        raise UserError(f"{name} has shape {store.shape}, not {leaf.shape}")
    # Devices that hold the same part share one read. A slice cannot be a key, its text can.
    reads: dict[str, tensorstore.Future] = {}
    for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values():
        if str(index) not in reads:
            reads[str(index)] = store[index].read()

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        return reads[str(index)].result().astype(leaf.dtype, copy=False)

    try:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)
    except Exception as error:  # as above
        raise UserError(first_line(error)) from error


def with_rows(params: dict, model: ModelConfig, mesh: Mesh) -> dict:
    """Returns the parameters with as many vocabulary entries as the model has."""
    rows = model.vocab_size
    if rows == params["embedding"].shape[0]:
        return params
    tables = {name: params[name] for name in TABLES if name in params}
    placed = abstract_params(model, mesh)
    shardings = {name: placed[name].sharding for name in tables}
    resize = functools.partial(resized, rows=rows)
    # Under jit the new entries are made on the devices that hold them.
    with on_mesh(mesh):
        return params | jax.jit(resize, out_shardings=shardings)(tables)


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
    params = load_params(folder, config.model, mesh)
    return TrainedModel(config.model, params, tokenizer, folder.model_name, chat=config.data.chat)
