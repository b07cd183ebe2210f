"""Overrides name their option, whatever arm they contradict, and warn of a rate without a peak."""

import dataclasses

import pytest
import toy

from codellama_jax import overrides
from codellama_jax.config import Experiment
from codellama_jax.errors import UserError

BASE = toy.stage()
SPLIT = dataclasses.replace(BASE, micro_batches=4)
TWO = Experiment("two", "toy", {"a": {"code": BASE}, "b": {"code": BASE, "more": SPLIT}})


def given(**stages):
    return overrides.options(TWO) | stages


def test_a_value_that_contradicts_another_arm_names_the_option():
    experiment = dataclasses.replace(TWO, arms={"a": {"code": BASE}, "b": {"code": SPLIT}})
    options = overrides.options(experiment)
    odd = dataclasses.replace(BASE.data, batch_size=6)
    options["code"] = dataclasses.replace(BASE, data=odd)
    with pytest.raises(UserError, match=r"^--code\.micro-batches is 4: it must divide data"):
        overrides.apply(experiment, options)


def test_every_arm_changes():
    changed = overrides.apply(TWO, given(code=dataclasses.replace(BASE, steps=7)))
    assert [chain["code"].steps for chain in changed.arms.values()] == [7, 7]
    assert changed.arms["b"]["more"] == SPLIT


@pytest.mark.parametrize(
    "steps, warmup, line",
    [
        (
            50,
            60,
            "warning: --code.optimizer.warmup-steps is 60 and --code.steps is 50: the learning rate"
            " ends at 0.00833 and never reaches its peak, 0.01; give fewer warm-up steps, such as"
            " 5\n",
        ),
        (60, 60, ""),
        (
            0,
            60,
            "warning: --code.steps is 0: it trains nothing, and evaluates and saves the weights",
        ),
    ],
)
def test_warnings(steps, warmup, line, capsys):
    rate = dataclasses.replace(BASE.optimizer, warmup_steps=warmup)
    after = overrides.apply(TWO, given(code=dataclasses.replace(BASE, steps=steps, optimizer=rate)))
    overrides.warn(TWO, after)
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == bool(line)
