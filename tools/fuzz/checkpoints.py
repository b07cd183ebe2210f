"""Inputs of commands that read a checkpoint: a trained run with damaged checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import published
import toy
from etils import epath

from codellama_jax.checkpoints import checkpoint, loading
from codellama_jax.config import Experiment, MeshConfig, Stage, TokenizerConfig, to_dict
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.system.files import write_json
from codellama_jax.training.step import abstract_state, init_state
from codellama_jax.weights import commands, load, store
from tools.fuzz import mutations
from tools.fuzz.harness import made_once

STAGE = toy.stage(model=published.MODEL)
ARM, NAME = "main", "code"
STEPS = (1, 2)


def write_trained(run: Path) -> None:
    """Writes the folder of a run with two checkpoints, with optimizer, cursors and checksums."""
    folder = epath.Path(run) / ARM / NAME
    saving = checkpoint.Checkpoints(folder / "checkpoints", STAGE)
    mesh = make_mesh(MeshConfig())
    with on_mesh(mesh):
        state = init_state(STAGE, mesh, seed=1)
        for step in STEPS:
            saving.save(step, state, {"0": {"at": step}}, tokens=100 * step)
    saving.wait()
    # Both steps must be on disk before they are damaged.
    saving.close()
    write_json(folder / "config.json", to_dict(STAGE))
    write_json(folder / "done.json", {"step": STEPS[-1], "tokens": 100})
    published.tokenizer().save(epath.Path(run) / "tokenizer.model")
    tokenizer = TokenizerConfig("tokenizer.model")
    experiment = Experiment("trained", "toy", {ARM: {NAME: STAGE}}, tokenizer)
    write_json(epath.Path(run) / "config.json", to_dict(experiment))


def damaged_checkpoints(rng: Random, folder: Path) -> Callable[[], object]:
    """A run with damaged checkpoints, which is exported, loaded, resumed or used as init."""
    run = folder / "run"
    shutil.copytree(made_once("trained", write_trained), run)
    place = run / ARM / NAME
    damage(rng, place / "checkpoints")
    # Every way by which a command reads a checkpoint: each must succeed or end with one error line.
    actions = [
        lambda: loading.load_run(str(run)),
        lambda: resume(place),
        lambda: commands.Export(str(run), str(folder / "exported"), rng.choice(["hf", "meta"]))(),
        lambda: commands.Check(str(run))(),
        lambda: store.open_run(epath.Path(run), "", "").tensor("final_norm"),
        lambda: start_from(f"run:{run}{rng.choice(['', '', '@1', '@2', '@3'])}"),
    ]
    return rng.choice(actions)


def damage(rng: Random, checkpoints: Path) -> None:
    """Damages, replaces or removes up to four files or folders of checkpoints."""
    # Mostly the newest checkpoint, because it is the one that is read first.
    newest = checkpoints / f"step_{STEPS[-1]}"
    for _ in range(rng.choice([1, 1, 2, 4])):
        root = newest if rng.random() < 0.7 and newest.is_dir() else checkpoints
        paths = sorted(path for path in root.rglob("*") if not path.is_symlink())
        if not paths:
            return
        path = rng.choice(paths)
        if path.is_dir() or rng.random() < 0.2:
            mutations.replace_file(rng, path)
        else:
            mutations.damage_file(rng, path)


def resume(place: Path) -> None:
    """Restores the newest checkpoint that is not damaged, as a resumed run does."""
    opened = checkpoint.Checkpoints(epath.Path(place) / "checkpoints", STAGE)
    mesh = make_mesh(MeshConfig())
    try:
        with on_mesh(mesh):
            opened.restore(abstract_state(STAGE, mesh))
    finally:
        opened.close()


def start_from(init: str) -> None:
    """Loads the parameters of a stage with this `init`."""
    mesh = make_mesh(MeshConfig())
    stage = Stage(STAGE.model, STAGE.data, STAGE.optimizer, steps=1, init=init)
    load.initial_params(stage, mesh)()
