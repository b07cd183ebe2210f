"""Reads the folder of a run for its report.

The numbers of a damaged file are left out and `StageResult.damage` has a line about it; the rest of
the report is written.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, StageFolder, seeded
from codellama_jax.config import Experiment, Stage
from codellama_jax.errors import UserError
from codellama_jax.report.findings import DAMAGED
from codellama_jax.report.results import Results, StageResult
from codellama_jax.system.files import read_json, reason
from codellama_jax.training.metrics import read_metrics

Line = dict[str, float]
# Keys of every line of metrics.jsonl about training steps, and about a validation.
TRAINING = ("step", "loss", "tokens", "seconds")
VALIDATION = ("step", "validation_loss", "seconds")


def read_run(run: RunFolder, experiment: Experiment) -> Results:
    """Returns the results of all stages, by arm and seed, in order."""
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


def read_data_counts(run: RunFolder, experiment: Experiment) -> dict[str, list[dict[str, Any]]]:
    """Returns the counts of each data stage that is complete, of every seed, by arm and name."""
    counts: dict[str, list[dict[str, Any]]] = {}
    for arm, chain in experiment.arms.items():
        names = {name for stage in chain.values() for name in experiment.data_read_by(stage)}
        for name in sorted(names):
            of_seeds = counts[f"{arm}/{name}"] = []
            for number in range(experiment.seeds):
                folder = run.stage(seeded(arm, number), name)
                # Damage is ignored here, because `read_stage` reports it for the stages that read
                # the data.
                done, _ = read_object(_trained_at(folder, []).done)
                if isinstance(done.get("counts"), dict):
                    of_seeds.append(done["counts"])
    return counts


def read_stage(folder: StageFolder, name: str, stage: Stage) -> StageResult:
    """Returns the metrics and probes of a stage, which the report calls `name`."""
    damage: list[str] = []
    # A stage that equals one of an earlier run has only a reference to the folder of that run.
    trained_at = _trained_at(folder, damage)
    lines = _metric_lines(trained_at.metrics, damage)
    training, validation = _by_step(lines, TRAINING), _by_step(lines, VALIDATION)
    # A line about a validation has no number of tokens: it is interpolated between training lines.
    steps, tokens = [0.0], [0.0]
    for line in training:
        steps.append(line["step"])
        tokens.append(line["tokens"])
    for line in validation:
        line["tokens"] = float(np.interp(line["step"], steps, tokens))
    probes, damaged = read_object(folder.probes)
    damage += damaged
    return StageResult(name, stage, training, validation, probes, str(trained_at), tuple(damage))


def read_object(path: epath.Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the JSON object of a file, and lines about damage.

    The object is {} if the file does not exist or is damaged.
    """
    try:
        value = read_json(path) if path.exists() else {}
    except (UserError, OSError) as error:
        return {}, [f"{reason(error)}. It is left out of this report."]
    if not isinstance(value, dict):
        return {}, [f"{path} is not a JSON object. It is left out of this report."]
    return value, []


def _trained_at(folder: StageFolder, damage: list[str]) -> StageFolder:
    """Returns the folder in which a stage was trained. Adds a line to `damage` if unknown."""
    try:
        return folder.trained()
    except (*DAMAGED, OSError) as error:
        damage.append(f"{folder.done} cannot be read: {reason(error)}")
        return folder


def _metric_lines(path: epath.Path, damage: list[str]) -> list[Line]:
    """Returns the lines of a metrics file, each with only its finite numbers."""
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
        damage.append(f"{path} has {len(records) - len(lines)} lines that are not JSON objects.")
    return lines


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a finite number."""
    # In Python True is an int; in JSON it is not a number.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that is too large for a float
        return False


def _by_step(lines: list[Line], keys: tuple[str, ...]) -> list[Line]:
    """Returns copies of the lines that have all keys, one per step, sorted by step."""
    by_step = {}
    for line in lines:
        # A process that was killed while it wrote leaves a line with some of the keys.
        if all(key in line for key in keys):
            # A resumed run writes some steps again, and the later line counts.
            by_step[line["step"]] = dict(line)
    return [by_step[step] for step in sorted(by_step)]
