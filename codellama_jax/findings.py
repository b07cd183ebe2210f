"""What an experiment finds: a question, a table beside the paper's numbers, figures, and a verdict computed from the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from codellama_jax.figures import Panel

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


def pairs(first: Sequence, second: Sequence, measure: Callable) -> list[float]:
    """Returns measure(first) - measure(second), seed by seed, of two arms' results."""
    return [measure(a) - measure(b) for a, b in zip(first, second)]


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
