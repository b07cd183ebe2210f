"""Orbax checkpoints: asynchronous, atomic, with a checksum per array.

A damaged checkpoint gives way to the one before it, with a warning.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from codellama_jax.checkpoints import checksums
from codellama_jax.checkpoints.stage_folder import config_from, run_tokenizer, stage_folder
from codellama_jax.checkpoints.vocabulary import check_vocabulary, resized
from codellama_jax.config import MeshConfig, ModelConfig, Stage, to_dict
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import checkpoint_bytes
from codellama_jax.sharding.hosts import gather
from codellama_jax.sharding.mesh import check_cuts, make_mesh, on_mesh
from codellama_jax.system.console import warn
from codellama_jax.system.exits import exit_within
from codellama_jax.system.files import check_no_pipes, is_bucket, read_json, user_path
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.training.step import TrainState, abstract_state

# Orbax and its event loops print tracebacks of errors that they also raise: one line reports them.
logging.getLogger("absl").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
LOOP_CLOSED = "Event loop is closed"
print_ignored = sys.unraisablehook


def print_but_late_errors(ignored: Any) -> None:
    """Prints an exception that Python ignores, unless it is of a read or write Orbax has given up.

    After the first error Orbax closes its event loop, while TensorStore's threads still report to
    it and coroutines still wait.
    """
    late = isinstance(ignored.exc_value, RuntimeError) and str(ignored.exc_value) == LOOP_CLOSED
    code = getattr(ignored.object, "cr_code", None)
    if not late and not (code and "orbax" in code.co_filename):
        print_ignored(ignored)


sys.unraisablehook = print_but_late_errors


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error, for a message of one line."""
    if "No space left" in str(error):
        return "no space left on the device"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class Checkpoints:
    """The checkpoints of one stage.

    Each holds parameters, optimizer with its step, data cursors of every row, the config, and the
    checksums of all of them. A checkpoint of a version that wrote no checksums loads unchecked.
    """

    def __init__(self, folder: epath.Path, stage: Stage):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=stage.keep_checkpoints,
            create=True,
            step_prefix="step",
            cleanup_tmp_directories=True,
        )
        self.folder, self.stage, self.failed = folder, stage, False
        check_no_pipes(folder)
        self.manager = ocp.CheckpointManager(folder, options=options)

    def last_good(self) -> str:
        """Names the newest finished checkpoint, for messages."""
        steps = self.manager.all_steps()
        return f"{self.folder}/step_{max(steps)}" if steps else "none yet"

    def save(self, step: int, state: TrainState, rows: dict[str, Any], tokens: int) -> None:
        """Starts to save; returns once the arrays are copied.

        Raises UserError if this save or the one before it failed, or if there is no room.
        """
        self.wait()
        self._check_room(step)
        optimizer = {"step": state.step, "state": state.opt_state}
        cursors = {"rows": gather(rows), "tokens": tokens}
        sums = {
            "params": checksums.of_tree(state.params),
            "optimizer": checksums.of_tree(optimizer),
            "cursors": checksums.of_json(cursors),
        }
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(optimizer),
            cursors=ocp.args.JsonSave(cursors),
            stage=ocp.args.JsonSave(to_dict(self.stage)),
            checksums=ocp.args.JsonSave(sums),
        )
        self._guarded(f"step {step}", lambda: self.manager.save(step, args=items, force=True))

    def _check_room(self, step: int) -> None:
        if is_bucket(self.folder):
            return
        needed = checkpoint_bytes(self.stage.model) // jax.process_count()
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            room = f"it takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
            raise UserError(
                f"no room for the checkpoint of step {step} in {self.folder}: {room};"
                f" the last good one: {self.last_good()}"
            )

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._guarded("the last step", self.manager.wait_until_finished)

    def close(self) -> None:
        """Waits for what is being written. After a failed save it leaves Orbax's threads alone."""
        if not self.failed:
            self.manager.close()

    def _guarded(self, what: str, save: Callable[[], Any]) -> None:
        try:
            save()
        except Exception as error:
            self.failed = True
            exit_within()  # threads of a failed save wait for each other for minutes, or for ever
            raise UserError(
                f"could not save the checkpoint of {what}: {first_line(error)};"
                f" the last good one: {self.last_good()}"
            ) from error

    def restore(self, abstract: TrainState) -> tuple[int, TrainState, dict[str, Any]] | None:
        """Returns step, state and cursors of the newest good checkpoint; None if there is none.

        Raises UserError if there are checkpoints and none of them can be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                items = self._read(step, abstract)
            except Exception as error:
                _warn_damaged(f"{self.folder}/step_{step}", error)
                continue
            for newer in steps:
                if newer > step:
                    self.manager.delete(newer)
            state = TrainState(
                items["optimizer"]["step"], items["params"], items["optimizer"]["state"]
            )
            return step, state, items["cursors"]
        if steps:
            raise UserError(
                f"no checkpoint under {self.folder} can be read: pass --fresh to start again"
                " (the folder is kept under another name)"
            )
        return None

    def _read(self, step: int, abstract: TrainState) -> dict[str, Any]:
        optimizer = {"step": abstract.step, "state": abstract.opt_state}
        items = self.manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore(optimizer),
                cursors=ocp.args.JsonRestore(),
            ),
        )
        saved = read_checksums(self.folder / f"step_{step}")
        if saved:
            checksums.check(items["params"], saved["params"])
            checksums.check(items["optimizer"], saved["optimizer"])
            if checksums.of_json(items["cursors"]) != saved["cursors"]:
                raise UserError("the data cursors do not match their checksum")
        return items


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


def _warn_damaged(checkpoint: str, error: BaseException) -> None:
    line = first_line(error)
    warn(f"warning: checkpoint {checkpoint} is damaged, trying the one before it ({line})")


def keep_compiled(cache: str) -> None:
    """Keeps compiled programs in the cache, so that a resumed run starts at once."""
    jax.config.update("jax_compilation_cache_dir", str(user_path(cache) / "compiled"))


@dataclass(frozen=True)
class Run:
    """A trained model as probes, generation and the next stage use it."""

    model: ModelConfig
    params: dict
    tokenizer: tokenizers.Tokenizer
    name: str


def load_params(
    folder: epath.Path, stage: Stage, mesh: jax.sharding.Mesh, step: int | None = None
) -> dict:
    """Returns the newest good parameters of a stage's folder, or those of a step, on the mesh.

    They have the shapes of `stage.model`. Raises UserError if there are none, or if they are
    another model's.
    """
    steps = checkpoint_steps(folder, step)
    saved = stage_config(folder).model
    check_shapes(folder, saved, stage.model)
    as_saved = dataclasses.replace(stage.model, vocab_size=saved.vocab_size)
    with on_mesh(mesh):
        abstract = abstract_state(dataclasses.replace(stage, model=as_saved), mesh).params
    manager = _reading(folder)
    for step in steps:
        path = folder / "checkpoints" / f"step_{step}"
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        try:
            params = manager.restore(step, args=args)["params"]
            if sums := read_checksums(path):
                checksums.check(params, sums["params"])
        except Exception as error:
            _warn_damaged(str(path), error)
        else:
            return with_rows(params, stage, mesh)
    raise UserError(f"no checkpoint under {folder} can be read")


def stage_config(folder: epath.Path) -> Stage:
    """Returns the config of a stage from its folder. Raises UserError if it is damaged."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} is not the config of a stage")
    return config_from(Stage, folder / "config.json", config)


def checkpoint_steps(folder: epath.Path, step: int | None = None) -> list[int]:
    """Returns the steps of a stage's checkpoints, the newest first, or only `step`.

    Raises UserError if there is none.
    """
    steps: list[int] = []
    if (folder / "checkpoints").exists():
        steps = sorted(_reading(folder).all_steps(), reverse=True)
    if not steps:
        raise UserError(f"no checkpoint in {folder}: give the folder of a run that has trained")
    if step is not None and step not in steps:
        existing = ", ".join(map(str, sorted(steps)))
        raise UserError(f"{folder} has no checkpoint of step {step}: it has {existing}")
    return steps if step is None else [step]


def _reading(folder: epath.Path) -> ocp.CheckpointManager:
    check_no_pipes(folder / "checkpoints")
    options = ocp.CheckpointManagerOptions(read_only=True, step_prefix="step")
    return ocp.CheckpointManager(folder / "checkpoints", options=options)


def with_rows(params: dict, stage: Stage, mesh: jax.sharding.Mesh) -> dict:
    """Returns the parameters with as many rows of the vocabulary as the stage wants."""
    rows = stage.model.vocab_size
    if rows == params["embedding"].shape[0]:
        return params
    with on_mesh(mesh):
        placed = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh).params)
        return jax.jit(lambda p: resized(p, rows), out_shardings=placed)(params)


def check_shapes(folder: epath.Path | str, saved: ModelConfig, wanted: ModelConfig) -> None:
    """Raises UserError if the parameters in a folder are those of a model of another shape.

    Sentinels and padding of the vocabulary may differ.
    """
    if type(saved) is not type(wanted):
        raise UserError(
            f"{folder} holds a model of another family: {saved.family} there and {wanted.family} here"
        )
    for field in dataclasses.fields(saved):
        there, here = getattr(saved, field.name), getattr(wanted, field.name)
        if there != here and field.name not in saved.adjustable:
            raise UserError(
                f"{folder} holds another model: {field.name} is {there} there and {here} here"
            )
    check_vocabulary(folder, saved.vocab_size, wanted.vocab_size)


def load_run(
    path: str, arm: str = "", stage: str = "", mesh: jax.sharding.Mesh | None = None
) -> Run:
    """Loads a run's model and tokenizer, on all devices unless a mesh is given.

    Raises UserError for a run that does not exist, has not trained, or does not fit the mesh.
    """
    run = user_path(path)
    folder, config = stage_folder(run, arm, stage)
    tokenizer, mesh = run_tokenizer(folder), mesh or make_mesh(MeshConfig())
    check_cuts(mesh, config.model, "the least cache, in slots,", 32)
    return Run(
        config.model, load_params(folder, config, mesh), tokenizer, "/".join(folder.parts[-3:])
    )
