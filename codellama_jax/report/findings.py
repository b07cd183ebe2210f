"""The verdicts of an experiment, computed from its seeds.

An experiment file may have a function `finding(results)`. It returns a `Finding` (a question, a
table beside the paper's numbers, figures, differences whose sign the paper predicts) or, for one
seed, a list of `Expectation`s: the statements of the file's "Expected", each with a measurement.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codellama_jax.errors import UserError
from codellama_jax.report.page import Page
from codellama_jax.report.results import Results

CONFIDENCE = 0.95
DIFFERENCE_HEADINGS = (
    "difference",
    "verdict",
    "expected",
    "mean",
    "95 % interval",
    "unit",
    "by seed",
)
# Raised where a damaged file of the run holds other types than were written.
DAMAGED = (
    UserError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Interval:
    """A Student-t interval of a mean; infinite where there is one value."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Returns the interval of the mean of `values`."""
        n, mean = len(values), statistics.fmean(values)
        if n == 1:
            return cls(mean, -math.inf, math.inf, n)
        from scipy.special import stdtrit  # slow to import

        quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
        half = quantile * statistics.stdev(values) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Difference:
    """A difference whose side of a bound the paper predicts, one value per seed."""

    what: str  # "final validation loss, from scratch minus from the general model"
    unit: str  # "nats per token"
    values: Sequence[float]  # by seed
    expected: str = "above"  # or "below": the side of `bound` on which the paper has it
    bound: float = 0.0

    @property
    def interval(self) -> Interval:
        """The interval over the seeds."""
        return Interval.of(self.values)

    @property
    def verdict(self) -> str:
        """`agrees` or `disagrees` where the full interval is on one side, else `undecided`."""
        low, high = self.interval.low - self.bound, self.interval.high - self.bound
        if low <= 0 <= high:
            return "undecided"
        return "agrees" if (low > 0) == (self.expected == "above") else "disagrees"


@dataclass(frozen=True)
class Expectation:
    """A statement of the experiment file's "Expected", checked against one run."""

    statement: str  # "final validation loss at most 0.6 of the first"
    measured: str  # "0.45"
    met: bool


@dataclass(frozen=True)
class Panel:
    """Lines over x, a thin one per seed and a thick one for their mean.

    Points are drawn as dots where x is a category or where a line has one point.
    """

    x: str  # label with unit
    y: str
    lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]]  # name -> seeds -> points
    ticks: Sequence[str] = ()  # names of x = 0, 1, ... where x is a category
    log_x: int = 0  # base of a logarithmic axis, which is marked at the points
    log_y: bool = False


@dataclass(frozen=True)
class Finding:
    """The opening of a report of several seeds. Only the verdict is computed later."""

    question: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]  # with a column of the paper's numbers
    figures: Sequence[tuple[str, Sequence[Panel]]]  # caption, panels side by side
    differences: Sequence[Difference]
    reason: str  # why a small model may not show it; printed when it does not

    @property
    def verdict(self) -> str:
        """`disagrees` if one difference does, else `undecided` if one is, else `agrees`."""
        verdicts = {difference.verdict for difference in self.differences}
        for verdict in ("disagrees", "undecided"):
            if verdict in verdicts:
                return verdict
        return "agrees"


# The type of an experiment file's `finding`.
FindingOf = Callable[[Results], Finding | Sequence[Expectation]]


def pairs(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Returns the differences of two arms, seed by seed."""
    return [a - b for a, b in zip(first, second, strict=True)]


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Returns the mean over the seeds and, if there are several, minimum and maximum."""
    mean = format(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"


def crossing(points: Sequence[tuple[float, float]], level: float) -> float:
    """Returns the x at which a falling curve first reaches `level`, interpolated linearly.

    Returns the last x if it never does.
    """
    (x0, y0), *rest = points
    for x1, y1 in rest:
        if y1 <= level:
            return x1 if y1 == y0 else float(np.interp(level, (y1, y0), (x1, x0)))
        x0, y0 = x1, y1
    return x0


def write_finding(page: Page, name: str, results: Results, finding: FindingOf) -> None:
    """Adds the verdict to a page, with the table and figures that it was computed from.

    Args:
      page: the report.
      name: name of the experiment, for the names of the figures.
      results: the seeds in which every stage is done.
      finding: the function of the experiment file.
    """
    if not all(results.values()):
        page.note("The verdict is printed here once one seed of every arm has been trained.")
        return
    try:
        found = finding(results)
        if isinstance(found, Finding):
            _write_verdict(page, name, found)
        else:
            _write_expectations(page, found)
    except DAMAGED as error:  # a probe without an answer is no reason to lose the report
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        page.note(f"The verdict could not be computed from the run's probes: {why}")


def _write_expectations(page: Page, expectations: Sequence[Expectation]) -> None:
    met = sum(expectation.met for expectation in expectations)
    page.heading("Was the expectation met?")
    if met == len(expectations):
        page.text(f'Yes: all {met} statements of "Expected" are met.')
    else:
        page.text(f'No: {met} of the {len(expectations)} statements of "Expected" are met.')
    rows = [("met" if e.met else "not met", e.statement, e.measured) for e in expectations]
    page.table(("", "expected", "measured"), rows)


def _write_verdict(page: Page, name: str, found: Finding) -> None:
    from codellama_jax.report.figures import panels_figure  # matplotlib is slow to import

    rows = [(d.what, d.verdict, *_measured(d)) for d in found.differences]
    drawn = [(caption, panels, panels_figure(panels)) for caption, panels in found.figures]
    page.heading(found.question)
    agrees = found.verdict == "agrees"
    page.text("Agrees with the paper at this scale." if agrees else _not_shown(found))
    page.table(DIFFERENCE_HEADINGS, rows)
    page.note("Undecided: the Student-t interval over the seeds includes the expected bound.")
    page.table(found.headings, found.rows)
    for number, (caption, panels, drawing) in enumerate(drawn):
        seeds = max((len(lines) for p in panels for lines in p.lines.values()), default=0)
        legend = " Thin: each seed; thick: their mean." if seeds > 1 else ""
        page.figure(f"{name}-{number}", caption + legend, *drawing)


def _not_shown(found: Finding) -> str:
    if any(difference.interval.n == 1 for difference in found.differences):
        return "Undecided: one seed gives no interval."
    openings = {
        "disagrees": "Disagrees with the paper at this scale",
        "undecided": "Undecided at this scale",
    }
    parts = []
    for verdict, opening in openings.items():
        names = [d.what for d in found.differences if d.verdict == verdict]
        if names:
            parts.append(f"{opening}: {'; '.join(names)}.")
    return f"{' '.join(parts)} Likely reason: {found.reason}"


def _measured(difference: Difference) -> list[str]:
    interval, form = difference.interval, "+.3g"
    ends = "needs 2 seeds"
    if interval.n > 1:
        ends = f"{interval.low:{form}} to {interval.high:{form}}"
    seeds = ", ".join(f"{value:{form}}" for value in difference.values)
    bound = f"{difference.expected} {difference.bound:g}"
    return [bound, f"{interval.mean:{form}}", ends, difference.unit, seeds]
