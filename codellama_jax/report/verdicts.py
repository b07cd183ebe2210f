"""Decides from measured numbers whether a claim of a paper holds: the only place with verdicts.

A `Difference` has one number per seed, and the paper predicts on which side of a bound it is. A
`Trend` has the same difference after several lengths of training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, Literal

import numpy as np

from codellama_jax.checked import Checked, FieldError, shown

CONFIDENCE = 0.95
Side = Literal["above", "below"]  # of a bound
Verdict = Literal["agrees", "undecided", "disagrees"]


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
        # `mean` is exact, unlike `fmean`: that of three values 0.1 is not above the bound 0.1.
        n, mean = len(values), statistics.mean(map(float, values))
        # The sample deviation of one value is undefined: no verdict is possible with one seed.
        if n == 1:
            return cls(mean, -math.inf, math.inf, n)
        # mean ± t(n - 1, 97.5 %) * s / sqrt(n), with the sample deviation s. Student's t instead of
        # the normal distribution, because s itself is estimated from few seeds: at 3 seeds the
        # factor is 4.3 instead of 1.96.
        half = student_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)

    def text(self, form: str = "+.3g") -> str:
        """Returns `LOW to HIGH`, or that one value has no interval."""
        return f"{self.low:{form}} to {self.high:{form}}" if self.n > 1 else "needs 2 seeds"


def student_quantile(freedom: int) -> float:
    """Returns the quantile of Student's t that a two-sided interval of CONFIDENCE needs."""
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def verdict_of(values: Sequence[float], expected: Side, bound: float) -> Verdict:
    """Returns `undecided` if the interval of the mean includes the bound, else where it is.

    Args:
      values: one per seed.
      expected: the side of the bound that the paper predicts, on which it `agrees`.
      bound: in the unit of the values.
    """
    interval = Interval.of(values)
    # The verdict is about the mean over all possible seeds. It is certain only if the interval of
    # that mean is on one side of the bound, however clear the mean of these few seeds is.
    is_above, is_below = interval.low > bound, interval.high < bound
    if not (is_above or is_below):
        return "undecided"
    return "agrees" if is_above == (expected == "above") else "disagrees"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Returns `disagrees` if any verdict is that, else `undecided` if any is, else `agrees`."""
    given = set(verdicts)
    if "disagrees" in given:
        return "disagrees"
    # Without any difference nothing was measured, which must not count as agreement.
    return "undecided" if "undecided" in given or not given else "agrees"


def check_numbers(name: str, values: Any, least: int) -> None:
    """Raises FieldError unless `values` is a list of at least so many finite numbers."""
    # A string is a sequence too, and would fail later with a confusing message.
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or len(values) < least:
        raise FieldError(
            (name,), f" is {shown(values)}: it must be a list of {least} numbers or more"
        )
    for value in values:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise FieldError((name,), f" has {shown(value)}: it must hold finite numbers")


@dataclass(frozen=True)
class Difference(Checked):
    """A difference between two arms that the paper predicts to be above or below a bound."""

    name: str  # "final validation loss, from scratch minus from the general model"
    unit: str  # "nats per token"
    values: Sequence[float]  # one per seed
    expected: Side = "above"  # of `bound`
    bound: float = 0.0

    def check_relations(self) -> None:
        """Raises FieldError unless there is a finite number for at least one seed."""
        check_numbers("values", self.values, 1)

    @property
    def interval(self) -> Interval:
        """Returns the confidence interval over the seeds."""
        return Interval.of(self.values)

    @property
    def verdict(self) -> Verdict:
        """Returns the verdict over the seeds."""
        return verdict_of(self.values, self.expected, self.bound)


@dataclass(frozen=True)
class Trend(Checked):
    """A difference after several lengths of training, of which the paper predicts the last."""

    name: str
    unit: str
    tokens: Sequence[float]  # of each length, at least two, rising
    values: Sequence[Sequence[float]]  # the difference at each length, for each seed
    expected: Side = "above"  # of `bound`, at the length of the paper
    bound: float = 0.0

    def check_relations(self) -> None:
        """Raises FieldError unless every seed has a finite number for each of rising lengths."""
        check_numbers("tokens", self.tokens, 2)
        # The 0 in front makes the first length positive too: its logarithm is taken below.
        if any(second <= first for first, second in pairwise([0, *self.tokens])):
            problem = f" is {shown(list(self.tokens))}: it must rise from above 0"
            raise FieldError(("tokens",), problem)
        if not self.values:
            raise FieldError(("values",), " is empty: it needs one list per seed")
        for of_seed in self.values:
            check_numbers("values", of_seed, 1)
            if len(of_seed) != len(self.tokens):
                problem = f" has {len(of_seed)} lengths, and tokens has {len(self.tokens)}"
                raise FieldError(("values",), f"{problem}: give one number per length")

    @property
    def longest(self) -> Difference:
        """Returns the difference at the last length, which has the verdict."""
        # Only the longest training decides: it is closest to the paper's.
        last = [of_seed[-1] for of_seed in self.values]
        return Difference(self.name, self.unit, last, self.expected, self.bound)

    @property
    def slopes(self) -> list[float]:
        """Returns the change of the difference per doubling of the tokens, by seed.

        It is the slope of a straight line through all lengths, by least squares.
        """
        # The paper trains on many thousand times more tokens. On a logarithmic axis a trend may be
        # continued there, and a slope per doubling compares runs of any length.
        doublings = np.log2(np.asarray(self.tokens, np.float64))
        return [float(np.polyfit(doublings, of_seed, 1)[0]) for of_seed in self.values]

    @property
    def slope(self) -> Interval:
        """Returns the confidence interval of the slope over the seeds."""
        return Interval.of(self.slopes)

    @property
    def direction(self) -> str:
        """Returns whether longer training brings the difference to the side of the paper."""
        # The sign of the slope matters here, whatever the bound of the difference itself is.
        verdict = verdict_of(self.slopes, self.expected, 0.0)
        words = {"agrees": "towards the paper", "disagrees": "away from the paper"}
        return words.get(verdict, "undecided")


def decisive(differences: Iterable[Difference], trends: Iterable[Trend]) -> list[Difference]:
    """Returns the differences that decide a finding, with those at the end of its trends."""
    return [*differences, *(trend.longest for trend in trends)]
