"""Verdicts follow the numbers, for every kind of claim."""

import math

import numpy as np
import pytest

from codellama_jax.errors import UserError
from codellama_jax.report.verdicts import Difference, Trend, verdict_of, worst

# Above 1 with certainty, below it, and on both sides of it.
HIGH, LOW, BOTH = [1.2, 1.3, 1.25], [0.2, 0.3, 0.25], [-3.0, 1.2, 4.0]
TOKENS = (1e6, 2e6, 4e6, 8e6)


@pytest.mark.parametrize(
    ("values", "expected", "verdict"),
    [
        (HIGH, "above", "agrees"),
        (HIGH, "below", "disagrees"),
        (LOW, "above", "disagrees"),
        (LOW, "below", "agrees"),
        (BOTH, "above", "undecided"),
        (BOTH, "below", "undecided"),
        ([5.0], "above", "undecided"),
    ],
)
def test_a_verdict_needs_the_interval_on_the_side_of_the_claim(values, expected, verdict):
    assert verdict_of(values, expected, 1.0) == verdict


def test_seeds_that_all_equal_the_bound_decide_nothing():
    for bound in (0.1, 0.7, -0.3):
        assert verdict_of([bound] * 3, "above", bound) == "undecided"
        assert verdict_of([bound] * 3, "below", bound) == "undecided"


def test_the_worst_verdict_counts():
    assert worst(["agrees", "undecided", "disagrees"]) == "disagrees"
    assert worst(["agrees", "undecided"]) == "undecided"
    assert worst(["agrees", "agrees"]) == "agrees"
    assert worst([]) == "undecided"


def trend(slope: float, last: float, expected: str = "above", noise: float = 0.01) -> Trend:
    """Returns a trend that ends at `last`, with seeds that differ by about `noise`."""
    values = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        line = last + slope * np.arange(-3, 1) + noise * rng.standard_normal(4)
        values.append(line.tolist())
    return Trend("difference", "nats", TOKENS, values, expected)


@pytest.mark.parametrize(
    ("slope", "last", "expected", "noise", "verdict", "direction"),
    [
        (0.5, 1.0, "above", 0.01, "agrees", "towards the paper"),
        (0.5, -1.0, "above", 0.01, "disagrees", "towards the paper"),
        (-0.5, 1.0, "above", 0.01, "agrees", "away from the paper"),
        (-0.5, 1.0, "below", 0.01, "disagrees", "towards the paper"),
        (0.5, -1.0, "below", 0.01, "agrees", "away from the paper"),
        (0.01, 0.01, "above", 1.0, "undecided", "undecided"),
    ],
)
def test_a_trend_has_the_verdict_at_its_end_and_a_direction(
    slope, last, expected, noise, verdict, direction
):
    measured = trend(slope, last, expected, noise)
    assert (measured.longest.verdict, measured.direction) == (verdict, direction)


def test_a_slope_is_the_change_per_doubling():
    measured = trend(0.25, 1.0, noise=0.0)
    assert measured.slopes == pytest.approx([0.25] * 4)
    noisy = trend(0.25, 1.0, noise=0.1)
    assert noisy.slope.low < 0.25 < noisy.slope.high
    one = Trend("difference", "nats", TOKENS, [[1.0, 2.0, 3.0, 4.0]])
    assert one.slopes == pytest.approx([1.0])
    assert one.direction == "undecided"  # one seed has no interval


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Difference("d", "u", []), "values is"),
        (lambda: Difference("d", "u", [1.0, math.inf]), "values has inf"),
        (lambda: Difference("d", "u", [True]), "values has True"),
        (lambda: Difference("d", "u", [1.0], "beside"), "expected is 'beside'"),
        (lambda: Trend("d", "u", TOKENS[:1], [[1.0]]), "tokens is"),
        (lambda: Trend("d", "u", (2e6, 1e6), [[1.0, 2.0]]), "tokens is .*must rise"),
        (lambda: Trend("d", "u", TOKENS, []), "values is empty"),
        (lambda: Trend("d", "u", TOKENS, [[1.0, 2.0]]), "2 lengths, and tokens has 4"),
    ],
)
def test_numbers_that_decide_nothing_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
