"""What an experiment finds: a question, a table beside the paper's numbers, figures, and a verdict computed from the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codellama_jax.errors import UserError
from codellama_jax.page import Page
from codellama_jax.results import Results

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A Student-t interval of a mean; without ends where there are too few numbers."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        n, mean = len(values), statistics.fmean(values)
        if n == 1:
            return cls(mean, -math.inf, math.inf, n)
        from scipy.special import stdtrit  # slow to import

        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Difference:
    """A difference that the paper lets expect, one number a seed."""

    what: str  # "final validation loss, from scratch minus from the general model"
    unit: str  # "nats a token"
    values: Sequence[float]  # by seed
    expected: str = "above"  # or "below": the side of `bound` on which the paper has it
    bound: float = 0.0

    @property
    def interval(self) -> Interval:
        return Interval.of(self.values)

    @property
    def verdict(self) -> str:
        """`agrees` or `disagrees` where the whole interval lies on one side of the bound, else `undecided`."""
        low, high = self.interval.low - self.bound, self.interval.high - self.bound
        if low <= 0 <= high:
            return "undecided"
        return "agrees" if (low > 0) == (self.expected == "above") else "disagrees"


@dataclass(frozen=True)
class Panel:
    """Lines, or dots where x is no number or a line has one point: a thin one for every seed, a thick one for their mean."""

    x: str  # label with unit
    y: str
    lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]]  # name -> seeds -> points
    ticks: Sequence[str] = ()  # names of x = 0, 1, ... where x is no number
    log_x: int = 0  # base of a logarithmic axis, marked where there are points
    log_y: bool = False


@dataclass(frozen=True)
class Finding:
    """What the report opens with. Everything is text or numbers; nothing is computed later but the verdict."""

    question: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]  # the paper's numbers in a column of their own
    figures: Sequence[tuple[str, Sequence[Panel]]]  # caption, panels side by side
    differences: Sequence[Difference]
    reason: str  # why a small model may not show it; printed when it does not

    @property
    def verdict(self) -> str:
        """`agrees` if every difference does, `disagrees` if one does, else `undecided`."""
        verdicts = {difference.verdict for difference in self.differences}
        return next((verdict for verdict in ("disagrees", "undecided") if verdict in verdicts), "agrees")


FindingOf = Callable[[Results], Finding]  # what an experiment file's `finding` is


def pairs(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Returns the differences of two arms, seed by seed."""
    return [a - b for a, b in zip(first, second, strict=True)]


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Returns the mean of the seeds and, where there are several, the least and the greatest, for a table."""
    mean = format(statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def crossing(points: Sequence[tuple[float, float]], level: float) -> float:
    """Returns the x at which a falling curve first reaches a level, between its points linearly; its last x if it never does."""
    (x0, y0), *rest = points
    for x1, y1 in rest:
        if y1 <= level:
            return x1 if y1 == y0 else float(np.interp(level, (y1, y0), (x1, x0)))
        x0, y0 = x1, y1
    return x0


def write_finding(page: Page, name: str, results: Results, finding: FindingOf) -> None:
    """Writes verdict, the differences that it was computed from, table and figures. `results` are those of complete seeds."""
    if not all(results.values()):
        page.note("What this experiment finds is printed here once a seed of every arm has been trained.")
        return
    try:
        found = finding(results)
    except UserError as missing:  # a probe without an answer is no reason to lose the report
        page.note(f"What this experiment finds could not be computed: {missing}")
        return
    from codellama_jax.figures import panels_figure  # matplotlib is slow to import, and a plan needs none

    page.heading(found.question)
    page.text(f"{found.verdict.capitalize()} with the paper at this scale." if found.verdict == "agrees" else _not_shown(found))
    rows = [(d.what, d.verdict, *_measured(d)) for d in found.differences]
    page.table(("difference", "verdict", "expected", "mean", "95 % interval", "unit", "by seed"), rows)
    page.note("Agrees or disagrees where the whole Student-t interval over the seeds lies on one side of what is expected, else undecided.")
    page.table(found.headings, found.rows)
    for number, (caption, panels) in enumerate(found.figures):
        seeds = any(len(lines) > 1 for panel in panels for lines in panel.lines.values())
        page.figure(f"{name}-{number}", caption + seeds * " Thin: each seed; thick: their mean.", *panels_figure(panels))


def _not_shown(found: Finding) -> str:
    if any(difference.interval.n == 1 for difference in found.differences):
        return "Undecided: one seed gives no interval."
    said = {"disagrees": "Disagrees with the paper at this scale", "undecided": "Undecided at this scale"}
    named = {verdict: [d.what for d in found.differences if d.verdict == verdict] for verdict in said}
    parts = [f"{said[verdict]}: {'; '.join(names)}." for verdict, names in named.items() if names]
    return f"{' '.join(parts)} Likely reason: {found.reason}"


def _measured(difference: Difference) -> list[str]:
    interval, form = difference.interval, "+.3g"
    ends = f"{interval.low:{form}} to {interval.high:{form}}" if interval.n > 1 else "needs 2 seeds"
    seeds = ", ".join(f"{value:{form}}" for value in difference.values)
    return [f"{difference.expected} {difference.bound:g}", f"{interval.mean:{form}}", ends, difference.unit, seeds]
