"""Runs the probes of an experiment on a trained stage, and decides which answers are kept.

The answers are returned; `runs/` writes them to probes.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from codellama_jax.checked import FieldError, from_dict
from codellama_jax.config import Probe, Stage, to_dict
from codellama_jax.errors import UserError
from codellama_jax.probes.earlier import options_by_probe
from codellama_jax.probes.subject import Subject
from codellama_jax.report.results import answer_name
from codellama_jax.system.progress import Say, silent


def run_probes(
    probes: Mapping[str, Probe], subject: Subject, print_line: Say = silent
) -> dict[str, Any]:
    """Returns the measures of each probe, as JSON. All hosts call it together.

    A probe that this model or corpus does not allow has only a `note` with the reason. `print_line`
    prints a line before each probe, because some take minutes.
    """
    answers = {}
    for name, probe in probes.items():
        print_line(f"{subject.model.name}: probe {name}")
        try:
            answers[name] = probe.measure(subject)
        except UserError as error:  # a small corpus is no reason to lose the other probes
            answers[name] = {"note": str(error)}
    return answers


def scheduled(
    probes: Mapping[str, Probe], stage: Stage, is_last: bool
) -> dict[int | None, dict[str, Probe]]:
    """Returns the probes that follow a stage by step, under the names of their answers.

    The last step is None, and comes first. An answer at an earlier one is named as `answer_name`
    names it.

    Args:
      probes: of the experiment, by name.
      stage: the stage.
      is_last: whether it is the last one of its arm.
    """
    by_step: dict[int | None, dict[str, Probe]] = {None: {}}
    for name, probe in probes.items():
        # A probe may be limited to the last stage, as in the ablations, whose earlier stages are
        # shared.
        if probe.applies(is_last):
            by_step[None][name] = probe
            for step in probe.steps_of(stage):
                # Grouped by step, because the parameters of a step are loaded once for all its
                # probes.
                by_step.setdefault(step, {})[answer_name(name, step)] = probe
    return by_step


def config_of(probes: Mapping[str, Probe], documents: list[Any]) -> dict[str, Any]:
    """Returns the entry `config` of probes.json: everything that the answers depend on.

    `documents` identifies the held-out documents and the seed, as JSON.
    """
    config: dict[str, Any] = {"documents": documents}
    for name, probe in probes.items():
        config[name] = to_dict(probe)
        for schedule in ("stages", "at_steps"):  # decide when a probe runs, not its answer
            config[name].pop(schedule, None)
    return config


def kept_answers(
    written: Mapping[str, Any] | None, probes: Mapping[str, Probe], documents: list[Any]
) -> dict[str, Any]:
    """Returns the answers in probes.json of the probes whose options have not changed.

    A note is no answer: its reason, such as a sandbox that could not be set up, may be gone.

    `written` is the content of the file, None if there is none; `documents` as in `config_of`.
    """
    config = written.get("config") if written else None
    # Other documents or another seed: no answer can be compared with new ones.
    if not written or not isinstance(config, dict) or config.get("documents") != documents:
        return {}
    options = options_by_probe(config)
    kept = {}
    # A probe is measured again only if its own options changed, whatever happened to the others.
    for name, probe in probes.items():
        answer = written.get(name)
        is_note = isinstance(answer, dict) and "note" in answer
        if answer is not None and not is_note and _has_options(probe, options.get(name)):
            kept[name] = answer
    return kept


def _has_options(probe: Probe, options: Any) -> bool:
    """Returns whether a probe has these options.

    A missing option counts as its default: an older file has no option that was added later.
    """
    try:
        other = from_dict(type(probe), options)
    except FieldError:
        return False
    # The schedule does not change an answer, and is set equal before the comparison.
    return dataclasses.replace(other, stages=probe.stages, at_steps=probe.at_steps) == probe
