"""pass@k (Codex, section 2.1): the probability that one of k samples passes.

The estimate is unbiased for any number of samples per task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks, with its bootstrap confidence interval from `low` to `high`."""

    mean: float
    low: float
    high: float
    tasks: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns 1 - C(n - c, k) / C(n, k).

    This is the probability that k of n samples, drawn without replacement, contain at least one of
    the c samples that pass. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs 0 <= c <= n and 1 <= k <= n, not n = {n}, c = {c}")
    # The quotient is the same if c and k are swapped. It is computed as min(c, k) factors in
    # [0, 1]: no binomial coefficient overflows, and nothing cancels before the last difference.
    count, other = min(c, k), max(c, k)
    if count + other > n:
        return 1.0
    factors = [(n - other - i) / (n - i) for i in range(count)]
    return 1.0 - float(np.prod(factors))


def estimate(
    counts: Sequence[tuple[int, int]], k: int, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Returns the mean pass@k over tasks, with the percentile interval of a bootstrap over tasks.

    `counts` holds (samples, samples that pass) of each task. Raises ValueError if a task has fewer
    than k samples.
    """
    values = np.array([pass_at_k(n, c, k) for n, c in counts])
    rng = np.random.default_rng(seed)
    tail = (1.0 - confidence) / 2
    means = []
    # Tasks are resampled, not samples: the interval is about other tasks of the same kind.
    for _ in range(RESAMPLES):
        resampled = rng.integers(len(values), size=len(values))
        means.append(values[resampled].mean())
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def ranked_pass_at_k(passed: Sequence[bool], mean_logprobs: Sequence[float], k: int) -> float:
    """Returns 1.0 if one of the k samples ranked highest passes, else 0.0 (Codex, section 3.3).

    Samples are ranked by their mean log-probability per token; equal ones keep their order. Raises
    ValueError if the lists differ in length or hold fewer than k samples.
    """
    if len(passed) != len(mean_logprobs) or not 1 <= k <= len(passed):
        raise ValueError(
            f"ranking {k} of {len(passed)} verdicts needs as many log-probabilities, "
            f"not {len(mean_logprobs)}"
        )
    ranking = sorted(range(len(passed)), key=lambda i: -mean_logprobs[i])
    return float(any(passed[i] for i in ranking[:k]))
