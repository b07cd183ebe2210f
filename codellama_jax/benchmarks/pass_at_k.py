"""pass@k (Codex, section 2.1): the chance that one of k samples passes, without bias, from any number of samples a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks with its bootstrap confidence interval."""

    mean: float
    low: float  # of the interval
    high: float
    tasks: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns 1 - C(n - c, k) / C(n, k): the chance that k of n samples, drawn without replacement, hold one of the c that pass.

    The quotient is a product of k factors in [0, 1], or of c where that is shorter: nothing overflows or cancels before the last
    difference. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs 0 <= c <= n and 1 <= k <= n, not n = {n}, c = {c}")
    factors, other = min(c, k), max(c, k)
    return (
        1.0 - float(np.prod([(n - other - i) / (n - i) for i in range(factors)]))
        if factors + other <= n
        else 1.0
    )


def estimate(
    counts: Sequence[tuple[int, int]], k: int, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Returns the mean over tasks of (n, c) samples, with the percentile interval of a bootstrap over tasks.

    Raises ValueError where a task has fewer than k samples.
    """
    values = np.array([pass_at_k(n, c, k) for n, c in counts])
    rng, tail = np.random.default_rng(seed), (1.0 - confidence) / 2
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def ranked_pass_at_k(passed: Sequence[bool], mean_logprobs: Sequence[float], k: int) -> float:
    """Returns 1.0 if one of the k samples with the highest mean token log-probability passes, else 0.0 (Codex, section 3.3).

    Equal ones count in their order. Raises ValueError for lists of unequal length, or fewer than k.
    """
    if len(passed) != len(mean_logprobs) or not 1 <= k <= len(passed):
        raise ValueError(
            f"ranking {k} of {len(passed)} verdicts needs as many log-probabilities, not {len(mean_logprobs)}"
        )
    best = sorted(range(len(passed)), key=lambda i: -mean_logprobs[i])[:k]
    return float(any(passed[i] for i in best))
