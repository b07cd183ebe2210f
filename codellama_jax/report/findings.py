"""Computes whether the results of an experiment agree with the paper.

An experiment file may have a function `finding(results)`. It returns one of:

- a `Finding`, for several seeds: a question, a table with the paper's numbers, figures, and
  differences whose sign the paper predicts.
- a list of `Expectation`s, for one seed: the statements of the file's "Expected", each with the
  measured number.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codellama_jax.errors import UserError
from codellama_jax.report.page import Page
from codellama_jax.report.results import Results
from codellama_jax.report.verdicts import Difference as Difference
from codellama_jax.report.verdicts import Interval as Interval
from codellama_jax.report.verdicts import Trend as Trend
from codellama_jax.report.verdicts import Verdict, decisive, worst

DIFFERENCE_HEADINGS = (
    "difference",
    "verdict",
    "expected",
    "mean",
    "95 % interval",
    "unit",
    "by seed",
)
TREND_HEADINGS = (
    "trend",
    "verdict at the longest",
    "change per doubling of the tokens",
    "95 % interval",
    "direction",
    "unit",
    "mean after each number of tokens",
)
SCHEDULE = (
    "All lengths are checkpoints of one run, whose learning rate falls over its full length. A"
    " checkpoint in its middle has a higher rate than the end of a run of that length, and a higher"
    " loss: compare the arms, which have the same rate, and not a length with a separate short run."
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
class HeatMap:
    """A diagram of shares from 0 to 1 in cells, each with its percentage."""

    x: str  # the label of the axis with its unit
    y: str  # the label of the axis
    columns: Sequence[str]
    rows: Sequence[str]  # from the top
    shares: Sequence[Sequence[float]]  # by row and column


@dataclass(frozen=True)
class Finding:
    """The result of an experiment with several seeds, the first section of its report."""

    question: str  # the heading
    headings: Sequence[str]  # of the table
    rows: Sequence[Sequence[str]]  # of the table, with a column of the paper's numbers
    figures: Sequence[tuple[str, Sequence[Panel]]]  # caption, and panels side by side
    differences: Sequence[Difference]  # decide the verdict
    reason: str  # why a small model may not agree with the paper; printed if it does not
    source: str = ""  # the paper's figure or table, as in "table 18"
    heat_maps: Sequence[tuple[str, HeatMap]] = ()  # each with its caption
    trends: Sequence[Trend] = ()  # of differences whose longest length decides the verdict too

    @property
    def decisive(self) -> list[Difference]:
        """Returns the differences that decide the verdict, with those at the end of the trends."""
        return decisive(self.differences, self.trends)

    @property
    def verdict(self) -> Verdict:
        """Returns the worst verdict of a difference: `disagrees`, `undecided` or `agrees`."""
        return worst(difference.verdict for difference in self.decisive)


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
    # It may rise after its first point, as in the warm-up of a trained model.
    if previous_y <= level:
        return previous_x
    for x, y in rest:
        if y <= level:
            # np.interp needs increasing abscissas: the curve falls, so the later point is first.
            return float(np.interp(level, (y, previous_y), (x, previous_x)))
        previous_x, previous_y = x, y
    return previous_x


def write_finding(page: Page, name: str, results: Results, finding: FindingOf) -> Finding | None:
    """Adds the verdict of an experiment to the report, with its table and figures.

    `name` is that of the experiment; the files of the figures begin with it. `results` holds only
    seeds in which every stage is done. `finding` is the function of the experiment file. Returns
    the finding, None if there is none or if it has expectations only.
    """
    # Arms are compared seed by seed, so that nothing can be compared while an arm has no seed.
    if not all(results.values()):
        page.note("The verdict is printed here once one seed of every arm has been trained.")
        return None
    try:
        result = finding(results)
        if isinstance(result, Finding):
            _write_verdict(page, name, result)
            return result
        _write_expectations(page, result)
    except DAMAGED as error:  # the rest of the report does not need the missing probe
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        page.note(f"The verdict could not be computed from the run's probes: {cause}")
    return None


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
    # matplotlib is slow to import
    from codellama_jax.report.figures import heat_map_figure, panels_figure

    # Everything that a damaged file may break is computed before the first block is added.
    rows = [(d.name, d.verdict, *_measured(d)) for d in finding.decisive]
    figures = [*finding.figures, *trend_figures(finding.trends)]
    drawings = [panels_figure(panels) for _, panels in figures]
    heat_maps = [(caption, heat_map_figure(heat_map)) for caption, heat_map in finding.heat_maps]
    page.heading(finding.question)
    agrees = finding.verdict == "agrees"
    page.text("Agrees with the paper at this scale." if agrees else _disagreement(finding))
    page.table(DIFFERENCE_HEADINGS, rows)
    page.note("Undecided: the Student-t interval over the seeds includes the expected bound.")
    page.table(finding.headings, finding.rows)
    if finding.trends:
        page.table(TREND_HEADINGS, [_trend_row(trend) for trend in finding.trends])
        page.note(SCHEDULE)
    for number, (caption, panels) in enumerate(figures):
        # With one seed the thin line and the thick one are the same line.
        if _has_seeds(panels):
            caption += " Thin: each seed; thick: their mean."
        page.figure(f"{name}-{number}", caption, *drawings[number])
    for number, (caption, drawing) in enumerate(heat_maps, len(figures)):
        page.figure(f"{name}-{number}", caption, *drawing)


def trend_figures(trends: Sequence[Trend]) -> list[tuple[str, list[Panel]]]:
    """Returns the figure of the trends, a panel for each: seeds and the bound over the tokens."""
    panels = []
    for trend in trends:
        millions = [tokens / 1e6 for tokens in trend.tokens]
        seeds = [list(zip(millions, of_seed, strict=True)) for of_seed in trend.values]
        # The paper's bound as a line of two points, from the first to the last length.
        bound = [(millions[0], trend.bound), (millions[-1], trend.bound)]
        lines = {"difference": seeds, f"the paper's is {trend.expected} this": [bound]}
        label = f"{trend.name} ({trend.unit})"
        panels.append(Panel("million tokens of code training", label, lines, log_x=2))
    caption = "Differences over the tokens of code training."
    return [(caption, panels)] if panels else []


def _trend_row(trend: Trend) -> list[str]:
    """Returns the row of a trend in the table."""
    by_length = []
    # `trend.values` is by seed and length; zip turns it to length and seed.
    for tokens, values in zip(trend.tokens, zip(*trend.values, strict=True), strict=True):
        by_length.append(f"{tokens / 1e6:.2f}M: {statistics.fmean(values):+.3g}")
    slope = trend.slope
    cells = [trend.longest.verdict, f"{slope.mean:+.3g}", slope.text(), trend.direction]
    return [trend.name, *cells, trend.unit, ", ".join(by_length)]


def _has_seeds(panels: Sequence[Panel]) -> bool:
    """Returns whether a line has more than one seed."""
    most = 0
    for panel in panels:
        most = max(most, *map(len, panel.lines.values()), 0)
    return most > 1


def _disagreement(finding: Finding) -> str:
    """Returns a sentence on the differences that do not agree with the paper."""
    if any(difference.interval.n == 1 for difference in finding.decisive):
        return "Undecided: one seed gives no interval."
    openings = {
        "disagrees": "Disagrees with the paper at this scale",
        "undecided": "Undecided at this scale",
    }
    parts = []
    for verdict, opening in openings.items():
        # Only the verdicts other than "agrees" are explained: a finding is as good as its worst
        # part.
        names = [d.name for d in finding.decisive if d.verdict == verdict]
        if names:
            parts.append(f"{opening}: {'; '.join(names)}.")
    return f"{' '.join(parts)} Likely reason: {finding.reason}"


def _measured(difference: Difference) -> list[str]:
    """Returns the cells of the table after the verdict."""
    interval, form = difference.interval, "+.3g"
    seeds = ", ".join(f"{value:{form}}" for value in difference.values)
    bound = f"{difference.expected} {difference.bound:g}"
    return [bound, f"{interval.mean:{form}}", interval.text(), difference.unit, seeds]
