"""Orbax checkpoints: asynchronous, atomic, and a damaged one never hides a good one before it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from rich.console import Console

from codellama_jax import tokenizer as tokenizers
from codellama_jax.accounting import checkpoint_bytes
from codellama_jax.config import MeshConfig, ModelConfig, Stage, from_dict, to_dict
from codellama_jax.errors import UserError
from codellama_jax.run_folder import run_tokenizer, stage_folder
from codellama_jax.training.mesh import check_cuts, make_mesh, on_mesh
from codellama_jax.training.step import TrainState, abstract_state
from codellama_jax.training.vocabulary import check_vocabulary, resized

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax prints tracebacks of errors that it also raises, and these are told in a line
warn = Console(stderr=True, style="yellow", soft_wrap=True, highlight=False).print


def first_line(error: BaseException) -> str:
    """Returns what a library's error says, for a message of one line."""
    if "No space left" in str(error):
        return "no space left on the device"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class Checkpoints:
    """The checkpoints of one stage: parameters, optimiser with its step, data cursors of every row, and the config."""

    def __init__(self, folder: epath.Path, stage: Stage):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=stage.keep_checkpoints, create=True, step_prefix="step", cleanup_tmp_directories=True
        )
        self.folder, self.stage = folder, stage
        self.manager = ocp.CheckpointManager(folder, options=options)

    def last_good(self) -> str:
        """Names the newest finished checkpoint, for messages."""
        steps = self.manager.all_steps()
        return f"{self.folder}/step_{max(steps)}" if steps else "none yet"

    def save(self, step: int, state: TrainState, rows: dict[str, Any], tokens: int) -> None:
        """Starts to save; returns once the arrays are copied. Raises UserError if this or the save before it failed, or has no room."""
        self.wait()
        self._check_room(step)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave({"step": state.step, "state": state.opt_state}),
            cursors=ocp.args.JsonSave({"rows": gather(rows), "tokens": tokens}),
            stage=ocp.args.JsonSave(to_dict(self.stage)),
        )
        self._guarded(f"step {step}", lambda: self.manager.save(step, args=items, force=True))

    def _check_room(self, step: int) -> None:
        if str(self.folder).startswith("gs://"):
            return
        needed, free = checkpoint_bytes(self.stage.model) // jax.process_count(), shutil.disk_usage(self.folder).free
        if free < needed:
            room = f"it takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
            raise UserError(f"no room for the checkpoint of step {step} in {self.folder}: {room}; the last good one: {self.last_good()}")

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._guarded("the last step", self.manager.wait_until_finished)

    def close(self) -> None:
        self.manager.close()

    def _guarded(self, what: str, save) -> None:
        try:
            save()
        except Exception as error:
            raise UserError(
                f"could not save the checkpoint of {what}: {first_line(error)}; the last good one: {self.last_good()}"
            ) from error

    def restore(self, abstract: TrainState) -> tuple[int, TrainState, dict[str, Any]] | None:
        """Returns step, state and cursors of the newest checkpoint that can be read; None if there is none.

        Raises UserError if there are checkpoints and none of them can be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                items = self._read(step, abstract)
            except Exception as error:
                warn(f"warning: checkpoint {self.folder}/step_{step} is damaged, trying the one before it ({first_line(error)})")
                continue
            for newer in (s for s in steps if s > step):
                self.manager.delete(newer)
            state = TrainState(items["optimizer"]["step"], items["params"], items["optimizer"]["state"])
            return step, state, items["cursors"]
        if steps:
            raise UserError(
                f"no checkpoint under {self.folder} can be read: pass --fresh to start again (the folder is kept under another name)"
            )
        return None

    def _read(self, step: int, abstract: TrainState) -> dict[str, Any]:
        return self.manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore({"step": abstract.step, "state": abstract.opt_state}),
                cursors=ocp.args.JsonRestore(),
            ),
        )


def gather(rows: dict[str, Any]) -> dict[str, Any]:
    """Returns the rows of all hosts: every host brings those it owns, ready for JSON."""
    if jax.process_count() == 1:
        return rows
    mine = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.array(mine.size))))
    texts = multihost_utils.process_allgather(np.pad(mine, (0, longest - mine.size), constant_values=ord(" ")))
    return {row: cursor for text in texts for row, cursor in json.loads(bytes(text)).items()}


def keep_compiled(cache: str) -> None:
    """Keeps what XLA compiles, so that a run that goes on starts at once."""
    jax.config.update("jax_compilation_cache_dir", str(epath.Path(cache).expanduser() / "compiled"))


@dataclass(frozen=True)
class Run:
    """A trained model as probes, generation and the next stage use it."""

    model: ModelConfig
    params: dict
    tokenizer: tokenizers.Tokenizer
    name: str


def load_params(folder: epath.Path, stage: Stage, mesh: jax.sharding.Mesh, step: int | None = None) -> dict:
    """Returns the newest readable parameters of a stage's folder, or those of a step, placed on the mesh, for `stage.model`'s shapes.

    Raises UserError if there is none, or if they are another model's.
    """
    steps = checkpoint_steps(folder, step)
    saved = from_dict(Stage, json.loads((folder / "config.json").read_text())).model
    check_shapes(folder, saved, stage.model)
    with on_mesh(mesh):
        abstract = abstract_state(
            dataclasses.replace(stage, model=dataclasses.replace(stage.model, vocab_size=saved.vocab_size)), mesh
        ).params
    manager = _reading(folder)
    for step in steps:
        try:
            params = manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))["params"]
        except Exception as error:
            warn(f"warning: checkpoint {folder}/checkpoints/step_{step} is damaged, trying the one before it ({first_line(error)})")
        else:
            return with_rows(params, stage, mesh)
    raise UserError(f"no checkpoint under {folder} can be read")


def checkpoint_steps(folder: epath.Path, step: int | None = None) -> list[int]:
    """Returns the steps of a stage's checkpoints, the newest first, or only the one asked for. Raises UserError if there is none."""
    steps = sorted(_reading(folder).all_steps(), reverse=True) if (folder / "checkpoints").exists() else []
    if not steps:
        raise UserError(f"no checkpoint in {folder}: give the folder of a run that has trained")
    if step is not None and step not in steps:
        raise UserError(f"{folder} has no checkpoint of step {step}: it has {', '.join(map(str, sorted(steps)))}")
    return steps if step is None else [step]


def _reading(folder: epath.Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder / "checkpoints", options=ocp.CheckpointManagerOptions(read_only=True, step_prefix="step"))


def with_rows(params: dict, stage: Stage, mesh: jax.sharding.Mesh) -> dict:
    """Returns the parameters with as many rows of the vocabulary as the stage wants."""
    rows = stage.model.vocab_size
    if rows == params["embedding"].shape[0]:
        return params
    with on_mesh(mesh):
        placed = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh).params)
        return jax.jit(lambda p: resized(p, rows), out_shardings=placed)(params)


def check_shapes(folder: epath.Path | str, saved: ModelConfig, wanted: ModelConfig) -> None:
    """Raises UserError if the parameters in a folder are not those of the model wanted, but for sentinels or padding."""
    for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "norm_eps"):
        if getattr(saved, name) != getattr(wanted, name):
            raise UserError(f"{folder} holds another model: {name} is {getattr(saved, name)} there and {getattr(wanted, name)} here")
    check_vocabulary(folder, saved.vocab_size, wanted.vocab_size)


def folder_at(path: str) -> epath.Path:
    """Returns a path that the user named, absolute where it is local: Orbax takes no other."""
    return epath.Path(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def load_run(path: str, arm: str = "", stage: str = "", mesh: jax.sharding.Mesh | None = None) -> Run:
    """Loads a run's model and tokenizer, on all devices unless a mesh is given. Raises UserError for what is not there or does not fit."""
    run = folder_at(path)
    folder, config = stage_folder(run, arm, stage)
    tokenizer, mesh = run_tokenizer(folder), mesh or make_mesh(MeshConfig())
    check_cuts(mesh, config.model, "the least cache, in slots,", 32)
    return Run(config.model, load_params(folder, config, mesh), tokenizer, "/".join(folder.parts[-3:]))
