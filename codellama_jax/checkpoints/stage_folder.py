"""The stage that a path names in a run folder, and the small files beside it. Imports no JAX."""

from __future__ import annotations

from typing import Any

from etils import epath

from codellama_jax.checked import FieldError
from codellama_jax.checkpoints import folder as reuse
from codellama_jax.config import Experiment, Stage, from_dict
from codellama_jax.errors import UserError
from codellama_jax.system.files import read_json
from codellama_jax.tokenizers import sentencepiece as tokenizers


def config_from(cls: Any, path: epath.Path, values: Any) -> Any:
    """Returns a config of the type `cls` from the JSON values of the file `path`.

    Raises UserError that names the file.
    """
    try:
        return from_dict(cls, values)
    except FieldError as error:
        raise UserError(f"{path}: {error}") from None


def named_stage(run: epath.Path, arm: str = "", stage: str = "") -> tuple[epath.Path, Stage]:
    """Returns the folder and config of a stage of a run.

    By default it is the last trained stage of the first arm. The folder may only point to the one
    where an equal stage was trained (see `stage_folder`).
    """
    if not run.exists():
        raise UserError(
            f"there is no folder {run}: name the folder of a run or of one of its stages"
        )
    if not (run / "config.json").exists():
        raise UserError(f"{run} is not the folder of a run: it has no config.json")
    config = read_json(run / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{run / 'config.json'} is not the config of a run or of a stage")
    if "arms" not in config:  # the folder of a stage itself
        return run, config_from(Stage, run / "config.json", config)
    # Probes are not needed here, and runs of older versions have them in another form.
    arms = config_from(Experiment, run / "config.json", {**config, "probes": {}}).arms
    arm = arm or next(iter(arms))
    chain = arms.get(arm.partition("@")[0], {})  # an arm's further seeds are named arm@1, arm@2 ...
    if not chain or (stage and stage not in chain):
        existing = ", ".join(f"{a}/{s}" for a in arms for s in arms[a])
        raise UserError(f"{run} has no {arm}/{stage}: it has {existing}")
    trained = [s for s in chain if reuse.is_trained(run / arm / s)]
    if not stage and not trained:
        raise UserError(
            f"no stage of {run}/{arm} has finished yet: start the same command again to resume it"
        )
    stage = stage or trained[-1]
    return run / arm / stage, chain[stage]


def stage_folder(run: epath.Path, arm: str = "", stage: str = "") -> tuple[epath.Path, Stage]:
    """Returns the folder in which `named_stage` was trained, and its config."""
    folder, config = named_stage(run, arm, stage)
    return reuse.followed(folder), config


def stage_probes(folder: epath.Path) -> dict[str, Any]:
    """Returns what the probes measured of a stage; {} if none ran or their file is damaged."""
    for path in (folder / "probes.json", reuse.followed(folder) / "probes.json"):
        try:
            probes = read_json(path)
        except UserError:
            continue
        if isinstance(probes, dict):
            return probes
    return {}


def run_tokenizer(folder: epath.Path) -> tokenizers.Tokenizer:
    """Loads the tokenizer of the run that holds a stage's folder. Raises UserError if none is."""
    for parent in (folder, *folder.parents):
        if (parent / "tokenizer.model").exists():
            return tokenizers.load(parent / "tokenizer.model")
    raise UserError(f"{folder} has no tokenizer.model")
