"""Runs the probes of an experiment on a trained stage. Nothing is written here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from codellama_jax.checked import FieldError, from_dict
from codellama_jax.config import Probe, to_dict
from codellama_jax.errors import UserError
from codellama_jax.probes.earlier import options_by_probe
from codellama_jax.probes.subject import Subject
from codellama_jax.system.progress import Say, silent


def run_probes(probes: Mapping[str, Probe], subject: Subject, say: Say = silent) -> dict[str, Any]:
    """Returns what each probe measured, ready for JSON; all hosts call it together.

    A probe that this model or corpus does not allow is a `note` with the reason. `say` gets a line
    before each probe, since some take minutes.
    """
    answers = {}
    for name, probe in probes.items():
        say(f"{subject.model.name}: probe {name}")
        try:
            answers[name] = probe.measure(subject)
        except UserError as error:  # a small corpus is no reason to lose the other probes
            answers[name] = {"note": str(error)}
    return answers


def config_of(probes: Mapping[str, Probe], documents: list[Any]) -> dict[str, Any]:
    """Returns what decides the answers in a probes.json, for its entry `config`.

    Args:
      probes: by name.
      documents: what else decides, ready for JSON: the held-out documents and the seed.
    """
    config: dict[str, Any] = {"documents": documents}
    for name, probe in probes.items():
        config[name] = to_dict(probe)
        del config[name]["stages"]
    return config


def kept_answers(
    written: Mapping[str, Any] | None, probes: Mapping[str, Probe], documents: list[Any]
) -> dict[str, Any]:
    """Returns the answers in a probes.json to those probes whose options are still the same.

    Args:
      written: the content of the file; None without one.
      probes: the probes of the experiment, by name.
      documents: as in `config_of`.
    """
    config = written.get("config") if written else None
    if not written or not isinstance(config, dict) or config.get("documents") != documents:
        return {}
    options = options_by_probe(config)
    kept = {}
    for name, probe in probes.items():
        if name in written and _has_options(probe, options.get(name)):
            kept[name] = written[name]
    return kept


def _has_options(probe: Probe, options: Any) -> bool:
    """Returns whether a probe has these options, those that are missing at their defaults."""
    try:
        other = from_dict(type(probe), options)
    except FieldError:
        return False
    return dataclasses.replace(other, stages=probe.stages) == probe
