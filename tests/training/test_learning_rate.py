"""Learning rates at steps that the papers fix."""

import math

import pytest

from codellama_jax.runs.commands import PlanOptions, load_experiment
from codellama_jax.training.step import learning_rate


def rate(name: str, scale: str, arm: str, stage: str):
    """Returns the learning rate of an update, counted from 1."""
    experiment, _ = load_experiment(PlanOptions(name, scale))
    config = experiment.arms[arm][stage]
    schedule = learning_rate(config.optimizer, config.steps)
    return lambda update: float(schedule(update - 1))


def test_codegeex_cosine_counts_from_step_0():
    at = rate("codegeex", "13b", "main", "code")
    assert at(1000) == pytest.approx(5e-5)
    assert at(1999) == pytest.approx(1e-4 * 1999 / 2000)
    span = 1e-4 - 1e-6
    assert at(2000) == pytest.approx(1e-6 + 0.99975 * span, rel=1e-5)
    assert at(2000) == pytest.approx(1e-6 + span * (1 + math.cos(math.pi * 0.01)) / 2, rel=1e-6)
    assert at(100_000) == pytest.approx(5.05e-5, rel=1e-5)
    assert at(200_000) == at(213_000) == pytest.approx(1e-6, rel=1e-4)


def test_codex_peaks_after_175_steps():
    at = rate("codex", "12b", "gpt", "code")
    assert at(175) == pytest.approx(1e-4) and at(174) < at(175) > at(500)
    assert at(47_684) == pytest.approx(1e-5, rel=1e-4)
    assert rate("codex", "12b", "codex_d", "docstrings")(175) == pytest.approx(1e-5)


def test_starcoder_and_its_python_stage():
    base, python = (rate("starcoder", "15.5b", "main", name) for name in ("base", "python"))
    assert (base(2000), python(500)) == (pytest.approx(3e-4), pytest.approx(5e-5))
    assert (base(250_000), python(8500)) == (pytest.approx(3e-5), pytest.approx(5e-6))
