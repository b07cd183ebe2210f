"""Dotted overrides of an experiment from the command line: `--code.optimizer.peak-lr 1e-3`, `--mesh.tensor 2`."""

from __future__ import annotations

import dataclasses
from typing import Any

from codellama_jax.config import Experiment, leaves, to_dict
from codellama_jax.errors import UserError
from codellama_jax.sizes import with_vocabulary_of

SHARED = ("tokenizer", "corpus", "mesh", "probes", "seed", "seeds")  # fields of the experiment; every other name is a stage


def options(experiment: Experiment) -> dict[str, Any]:
    """Returns what can be overridden, by its first name: each stage (of every arm that has it) and the shared parts."""
    stages = {name: stage for arm in reversed(experiment.arms.values()) for name, stage in arm.items()}
    return stages | {name: getattr(experiment, name) for name in SHARED}


def apply(experiment: Experiment, given: dict[str, Any]) -> Experiment:
    """Returns the experiment with the leaves that `given` changed of `options(experiment)`, in every arm.

    Raises UserError for a leaf in which the arms differ: it would make them equal.
    """
    before = options(experiment)
    for name in given.keys() - set(SHARED):
        _check_equal(experiment, name, before[name], given[name])
    arms = {
        arm: {name: _changed(stage, before[name], given[name]) for name, stage in stages.items()} for arm, stages in experiment.arms.items()
    }
    shared = {name: given[name] for name in SHARED}
    changed = dataclasses.replace(experiment, arms=arms, **shared)
    return with_vocabulary_of(changed, experiment.tokenizer.pieces)


def _check_equal(experiment: Experiment, name: str, before: Any, after: Any) -> None:
    by_arm = {arm: leaves(to_dict(stages[name])) for arm, stages in experiment.arms.items() if name in stages}
    for leaf, value in leaves(to_dict(after)).items():
        found = {arm: stage[leaf] for arm, stage in by_arm.items()}
        if value != leaves(to_dict(before))[leaf] and any(other != found[next(iter(found))] for other in found.values()):
            option = f"{name}.{leaf}".replace("_", "-")
            differ = ", ".join(f"{arm} {value:.3g}" if isinstance(value, float) else f"{arm} {value}" for arm, value in found.items())
            raise UserError(f"--{option} is what the arms differ in ({differ}): change it in a copy of the experiment file")


def _changed(value: Any, before: Any, after: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value if before == after else after
    names = [f.name for f in dataclasses.fields(value)]
    return dataclasses.replace(value, **{n: _changed(getattr(value, n), getattr(before, n), getattr(after, n)) for n in names})
