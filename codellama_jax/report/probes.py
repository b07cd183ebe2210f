"""Adds the sections on probes to a report. Their contents are in the file of each probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codellama_jax.config import Probe
from codellama_jax.report.page import Page
from codellama_jax.report.results import StageResult


def probe_section(page: Page, probe: Probe, stages: Sequence[StageResult]) -> None:
    """Adds the section of a probe, with a note for each stage that could not be measured."""
    answers: list[tuple[StageResult, Any]] = []
    # A probe may run after some stages only, such as the last one of an arm.
    for result in stages:
        if result.probes.get(probe.name):
            answers.append((result, result.probes[probe.name]))
    if not answers or not probe.title:
        return
    page.heading(probe.title)
    measured: list[tuple[StageResult, Any]] = []
    for result, answer in answers:
        # A note holds the reason why a stage could not be measured; the others are still shown.
        if "note" in answer:
            page.note(f"{result.name}: {answer['note']}")
        else:
            measured.append((result, answer))
    if measured:
        probe.show(page, measured)
