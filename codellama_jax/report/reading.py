"""Reads the folder of a run for its report.

A damaged file costs its own numbers and leaves a line in `StageResult.damage`; it never stops the
report.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, StageFolder
from codellama_jax.config import Experiment, Stage, seeded
from codellama_jax.errors import UserError
from codellama_jax.report.findings import DAMAGED
from codellama_jax.report.results import Results, StageResult
from codellama_jax.system.files import read_json, reason
from codellama_jax.training.metrics import read_metrics

Line = dict[str, float]
TRAINING = ("step", "loss", "tokens", "seconds")  # keys of every line of a training step
VALIDATION = ("step", "validation_loss", "seconds")


def read_run(run: RunFolder, experiment: Experiment) -> Results:
    """Returns the results of each arm's seeds and stages, in order."""
    results: Results = {}
    for arm, chain in experiment.arms.items():
        prefix = f"{arm}/" if len(experiment.arms) > 1 else ""
        results[arm] = []
        for number in range(experiment.seeds):
            results[arm].append([])
            for name, stage in chain.items():
                folder = run.stage(seeded(arm, number), name)
                results[arm][-1].append(read_stage(folder, prefix + name, stage))
    return results


def read_stage(folder: StageFolder, name: str, stage: Stage) -> StageResult:
    """Reads a stage's metrics and probes.

    A resumed run writes some steps again; of the lines of one step the last one counts.
    """
    damage: list[str] = []
    trained_at = _trained_at(folder, damage)
    lines = _metric_lines(trained_at.metrics, damage)
    training, validation = _by_step(lines, TRAINING), _by_step(lines, VALIDATION)
    steps = [0, *(line["step"] for line in training)]
    tokens = [0, *(line["tokens"] for line in training)]
    for line in validation:
        line["tokens"] = float(np.interp(line["step"], steps, tokens))
    probes, damaged = read_object(folder.probes)
    damage += damaged
    return StageResult(name, stage, training, validation, probes, str(trained_at), tuple(damage))


def read_object(path: epath.Path) -> tuple[dict[str, Any], list[str]]:
    """Returns a JSON object, {} if it does not exist or is damaged; and a line about damage."""
    try:
        value = read_json(path) if path.exists() else {}
    except (UserError, OSError) as error:
        return {}, [f"{reason(error)}. It is left out of this report."]
    if not isinstance(value, dict):
        return {}, [f"{path} is not a JSON object. It is left out of this report."]
    return value, []


def _trained_at(folder: StageFolder, damage: list[str]) -> StageFolder:
    try:
        return folder.trained()
    except (*DAMAGED, OSError) as error:
        damage.append(f"{folder.done} cannot be read: {reason(error)}")
        return folder


def _metric_lines(path: epath.Path, damage: list[str]) -> list[Line]:
    """Returns the lines of a metrics file, each with its finite numbers only."""
    try:
        records = read_metrics(path)
    except (*DAMAGED, OSError) as error:
        damage.append(f"{path} cannot be read: {reason(error)}. Its curves are left out.")
        return []
    lines: list[Line] = []
    for record in records:
        if isinstance(record, dict):
            lines.append({key: value for key, value in record.items() if is_number(value)})
    if len(lines) < len(records):
        damage.append(f"{path} has {len(records) - len(lines)} lines that are no JSON objects.")
    return lines


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _by_step(lines: list[Line], keys: tuple[str, ...]) -> list[Line]:
    """Returns copies of the lines that have all keys, in the order of their steps."""
    last = {line["step"]: dict(line) for line in lines if all(key in line for key in keys)}
    return [last[step] for step in sorted(last)]
