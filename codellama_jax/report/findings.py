"""Computes whether the results of an experiment agree with the paper.

An experiment file may have a function `finding(results)`. It returns one of:

- a `Finding`, for several seeds: a question, a table with the paper's numbers, figures, and
  differences whose sign the paper predicts.
- a list of `Expectation`s, for one seed: the statements of the file's "Expected", each with the
  measured number.
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
# Exceptions that a damaged file of the run causes, if it holds other types than were written.
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
    """A Student-t confidence interval of a mean; infinite for one value."""

    mean: float
    low: float
    high: float
    n: int  # values

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Returns the interval of the mean of `values` with probability CONFIDENCE."""
        n, mean = len(values), statistics.fmean(values)
        if n == 1:
            return cls(mean, -math.inf, math.inf, n)
        from scipy.special import stdtrit  # slow to import

        quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
        half = quantile * statistics.stdev(values) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Difference:
    """A difference between two arms that the paper predicts to be above or below a bound."""

    name: str  # "final validation loss, from scratch minus from the general model"
    unit: str  # "nats per token"
    values: Sequence[float]  # one per seed
    expected: str = "above"  # "above" or "below" `bound`
    bound: float = 0.0

    @property
    def interval(self) -> Interval:
        """Returns the confidence interval over the seeds."""
        return Interval.of(self.values)

    @property
    def verdict(self) -> str:
        """Returns `undecided` if the interval includes the bound, else `agrees` or `disagrees`."""
        low, high = self.interval.low - self.bound, self.interval.high - self.bound
        if low <= 0 <= high:
            return "undecided"
        side = "above" if low > 0 else "below"
        return "agrees" if side == self.expected else "disagrees"


@dataclass(frozen=True)
class Expectation:
    """A statement of the "Expected" of an experiment file, compared with one run."""

    statement: str  # "final validation loss at most 0.6 of the first"
    measured: str  # "0.45"
    met: bool


@dataclass(frozen=True)
class Panel:
    """A diagram with lines: for each name a thin line per seed and a thick one for their mean.

    They are dots if x is a category, or if a line has only one point.
    """

    x: str  # the label of the axis with its unit
    y: str  # the label of the axis with its unit
    lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]]  # by name: seeds of points (x, y)
    ticks: Sequence[str] = ()  # the categories at x = 0, 1, ...; empty if x is a number
    log_x: int = 0  # the base of a logarithmic x axis, with a tick at each point; 0 is linear
    log_y: bool = False  # whether the y axis is logarithmic


@dataclass(frozen=True)
class Finding:
    """The result of an experiment with several seeds, the first section of its report."""

    question: str  # the heading
    headings: Sequence[str]  # of the table
    rows: Sequence[Sequence[str]]  # of the table, with a column of the paper's numbers
    figures: Sequence[tuple[str, Sequence[Panel]]]  # caption, and panels side by side
    differences: Sequence[Difference]  # decide the verdict
    reason: str  # why a small model may not agree with the paper; printed if it does not

    @property
    def verdict(self) -> str:
        """Returns the worst verdict of a difference: `disagrees`, `undecided` or `agrees`."""
        verdicts = {difference.verdict for difference in self.differences}
        for verdict in ("disagrees", "undecided"):
            if verdict in verdicts:
                return verdict
        return "agrees"


# The type of an experiment file's `finding`.
FindingOf = Callable[[Results], Finding | Sequence[Expectation]]


def pairs(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Returns the differences of the values of two arms, seed by seed."""
    # Paired: both arms of a seed use the same random numbers, which reduces the variance.
    return [a - b for a, b in zip(first, second, strict=True)]


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Returns the mean over the seeds and, if there are several, minimum and maximum."""
    mean = format(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"


def crossing(points: Sequence[tuple[float, float]], level: float) -> float:
    """Returns the x at which a falling curve first reaches `level`, interpolated linearly.

    It is the last x if the curve never reaches `level`.
    """
    (previous_x, previous_y), *rest = points
    for x, y in rest:
        if y <= level:
            if y == previous_y:
                return x
            # np.interp needs increasing abscissas: the curve falls, so the later point is first.
            return float(np.interp(level, (y, previous_y), (x, previous_x)))
        previous_x, previous_y = x, y
    return previous_x


def write_finding(page: Page, name: str, results: Results, finding: FindingOf) -> None:
    """Adds the verdict of an experiment to the report, with its table and figures.

    `name` is that of the experiment; the files of the figures begin with it. `results` holds only
    seeds in which every stage is done. `finding` is the function of the experiment file.
    """
    if not all(results.values()):
        page.note("The verdict is printed here once one seed of every arm has been trained.")
        return
    try:
        result = finding(results)
        if isinstance(result, Finding):
            _write_verdict(page, name, result)
        else:
            _write_expectations(page, result)
    except DAMAGED as error:  # the rest of the report does not need the missing probe
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        page.note(f"The verdict could not be computed from the run's probes: {cause}")


def _write_expectations(page: Page, expectations: Sequence[Expectation]) -> None:
    met = sum(expectation.met for expectation in expectations)
    page.heading("Was the expectation met?")
    if met == len(expectations):
        page.text(f'Yes: all {met} statements of "Expected" are met.')
    else:
        page.text(f'No: {met} of the {len(expectations)} statements of "Expected" are met.')
    rows = []
    for expectation in expectations:
        verdict = "met" if expectation.met else "not met"
        rows.append((verdict, expectation.statement, expectation.measured))
    page.table(("", "expected", "measured"), rows)


def _write_verdict(page: Page, name: str, finding: Finding) -> None:
    from codellama_jax.report.figures import panels_figure  # matplotlib is slow to import

    # Everything that a damaged file may break is computed before the first block is added.
    rows = [(d.name, d.verdict, *_measured(d)) for d in finding.differences]
    drawings = [panels_figure(panels) for _, panels in finding.figures]
    page.heading(finding.question)
    agrees = finding.verdict == "agrees"
    page.text("Agrees with the paper at this scale." if agrees else _disagreement(finding))
    page.table(DIFFERENCE_HEADINGS, rows)
    page.note("Undecided: the Student-t interval over the seeds includes the expected bound.")
    page.table(finding.headings, finding.rows)
    for number, (caption, panels) in enumerate(finding.figures):
        if _has_seeds(panels):
            caption += " Thin: each seed; thick: their mean."
        page.figure(f"{name}-{number}", caption, *drawings[number])


def _has_seeds(panels: Sequence[Panel]) -> bool:
    """Returns whether a line has more than one seed."""
    most = 0
    for panel in panels:
        most = max(most, *map(len, panel.lines.values()), 0)
    return most > 1


def _disagreement(finding: Finding) -> str:
    """Returns a sentence on the differences that do not agree with the paper."""
    if any(difference.interval.n == 1 for difference in finding.differences):
        return "Undecided: one seed gives no interval."
    openings = {
        "disagrees": "Disagrees with the paper at this scale",
        "undecided": "Undecided at this scale",
    }
    parts = []
    for verdict, opening in openings.items():
        names = [d.name for d in finding.differences if d.verdict == verdict]
        if names:
            parts.append(f"{opening}: {'; '.join(names)}.")
    return f"{' '.join(parts)} Likely reason: {finding.reason}"


def _measured(difference: Difference) -> list[str]:
    """Returns the cells of the table after the verdict."""
    interval, form = difference.interval, "+.3g"
    low_to_high = "needs 2 seeds"
    if interval.n > 1:
        low_to_high = f"{interval.low:{form}} to {interval.high:{form}}"
    seeds = ", ".join(f"{value:{form}}" for value in difference.values)
    bound = f"{difference.expected} {difference.bound:g}"
    return [bound, f"{interval.mean:{form}}", low_to_high, difference.unit, seeds]
