"""Dotted overrides of an experiment from the command line: `--code.optimizer.peak-lr 1e-3`, `--mesh.tensor 2`."""

from __future__ import annotations

import dataclasses
from typing import Any

from codellama_jax.config import Experiment

SHARED = ("tokenizer", "corpus", "mesh", "probes", "seed", "seeds")  # fields of the experiment; every other name is a stage


def options(experiment: Experiment) -> dict[str, Any]:
    """Returns what can be overridden, by its first name: each stage (of every arm that has it) and the shared parts."""
    stages = {name: stage for arm in reversed(experiment.arms.values()) for name, stage in arm.items()}
    return stages | {name: getattr(experiment, name) for name in SHARED}


def apply(experiment: Experiment, given: dict[str, Any]) -> Experiment:
    """Returns the experiment with the leaves that `given` changed of `options(experiment)`, in every arm."""
    before = options(experiment)
    arms = {
        arm: {name: _changed(stage, before[name], given[name]) for name, stage in stages.items()} for arm, stages in experiment.arms.items()
    }
    return dataclasses.replace(experiment, arms=arms, **{name: given[name] for name in SHARED})


def _changed(value: Any, before: Any, after: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value if before == after else after
    names = [f.name for f in dataclasses.fields(value)]
    return dataclasses.replace(value, **{n: _changed(getattr(value, n), getattr(before, n), getattr(after, n)) for n in names})
