"""Options of an evaluation that would have no effect are refused, instead of being ignored."""

from __future__ import annotations

import dataclasses
from typing import Any

from codellama_jax.benchmarks.benchmark import Benchmark
from codellama_jax.benchmarks.settings import Checking, Settings
from codellama_jax.errors import UserError

# Options that only choose among tokens at a temperature above 0.
DRAWING = ("top_p", "seed")
# Options that a task with choices does not use: the model writes nothing.
WRITING = ("samples", "temperature", *DRAWING, "max_new_tokens", "spm", "beams", "length_penalty")
PROGRAMS = ("mode", "workers", "allow_unsafe", "jars", "extract_code")


def check_sources(settings: Settings, checking: Checking, samples_file: str, scores: bool) -> None:
    """Raises UserError for options of generation without generation, and for --partial with it.

    Args:
        settings: how samples would be drawn.
        checking: how samples are scored.
        samples_file: the file that is scored; "" for none.
        scores: whether only samples that exist are scored, those of a file or the canonical ones.
    """
    if scores:
        source = "--samples-file" if samples_file else "--reference"
        _refuse(settings, _names(Settings), f"with {source}, which generates nothing")
    if not samples_file:
        _refuse(checking, ("partial",), "without --samples-file")


def check_effects(benchmark: Benchmark, settings: Settings, checking: Checking) -> None:
    """Raises UserError for an option that a benchmark does not use.

    Args:
        benchmark: what is measured.
        settings: as given, without the benchmark's own temperature.
        checking: how samples are scored.
    """
    name = benchmark.name
    if benchmark.tasks[0].choices:
        _refuse(settings, WRITING, f"on {name}, which scores given answers")
    if not benchmark.infilling:
        _refuse(settings, ("spm",), f"on {name}, which has no infilling prompts")
    if benchmark.checks is None:
        _refuse(checking, PROGRAMS, f"on {name}, which runs no programs")


def check_drawing(settings: Settings, temperature: float) -> None:
    """Raises UserError for options of drawing where nothing is drawn, at temperature 0.

    Several samples are then equal, unless they are the best of a beam search.
    """
    # A beam search is deterministic at any temperature; its samples are its best texts.
    if settings.beams > 1:
        _refuse(settings, DRAWING, f"with --beams {settings.beams}, which draws nothing at random")
    elif temperature == 0:
        if settings.samples > 1:
            problem = f"--samples {settings.samples} at temperature 0 are all the same answer"
            fix = "leave out --samples, or pass --temperature above 0 or --beams"
            raise UserError(f"{problem}: {fix}")
        fix = "pass --temperature too"
        _refuse(settings, DRAWING, "at temperature 0, which takes the most likely token", fix)


def check_measured(name: str, settings: Settings, checking: Checking) -> None:
    """Raises UserError for any option of a benchmark that has no tasks."""
    why = f"on {name}, which draws no samples"
    _refuse(settings, _names(Settings), why)
    _refuse(checking, _names(Checking), why)


def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _refuse(options: Any, names: tuple[str, ...], why: str, fix: str = "") -> None:
    """Raises UserError for the first option of these names that is not its default."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        # A value that equals the default may have been typed, but it changes nothing either way.
        if field.name in names and value != field.default:
            option = f"--{field.name}".replace("_", "-")
            shown = option if value is True else f"{option} {value}"
            fix = f"leave it out, or {fix}" if fix else "leave it out"
            raise UserError(f"{shown} has no effect {why}: {fix}")
