"""Overrides name their option, whatever arm they contradict, and warn of a rate without a peak."""

import dataclasses

import pytest
import toy

from codellama_jax import overrides
from codellama_jax.command_line import cli
from codellama_jax.config import CorpusConfig, Experiment, MixtureConfig
from codellama_jax.errors import UserError
from codellama_jax.runs.commands import PlanOptions, options_type

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


def named(**others):
    mixture = MixtureConfig(code=0.5, others=others)
    return dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, mixture=mixture))


FIRST, SECOND = named(java=0.25, rust=0.25), named(java=0.25)
PATHS = CorpusConfig(others={"java": "a", "rust": "b"})
NAMED = Experiment("e", "toy", {"a": {"code": FIRST}, "b": {"code": SECOND}}, corpus=PATHS)


def overridden(experiment, *arguments):
    """Returns the experiment that a command line gives."""
    options = options_type(PlanOptions("e"), experiment)
    parsed = cli(options, args=["e", *arguments], prog="launch.py")
    names = overrides.options(experiment)
    return overrides.apply(experiment, {name: getattr(parsed, name) for name in names})


def test_sources_that_an_experiment_names_are_overridden():
    changed = overridden(
        NAMED, "--corpus.others.java", "prepared:c", "--code.data.mixture.others.java", "0.4"
    )
    assert changed.corpus.others == {"java": "prepared:c", "rust": "b"}
    others = [chain["code"].data.mixture.others for chain in changed.arms.values()]
    assert others == [{"java": 0.4, "rust": 0.25}, {"java": 0.4}]


def test_sources_are_added_to_an_experiment_without_others():
    changed = overridden(
        *(TWO, "--corpus.others", "java", "x", "rust", "y"),
        *("--code.data.mixture.others", "java", "0.5", "--corpus.code", "z"),
    )
    assert changed.corpus == CorpusConfig(code="z", others={"java": "x", "rust": "y"})
    shares = [chain["code"].data.mixture.others for chain in changed.arms.values()]
    assert shares == [{"java": 0.5}, {"java": 0.5}]
    assert changed.arms["b"]["more"] == SPLIT


def test_one_line_for_a_source_that_an_arm_or_the_corpus_lacks():
    line = r"^--code.data.mixture.others.rust differs between the arms \(a 0.25, b None\): change"
    with pytest.raises(UserError, match=line):
        overridden(NAMED, "--code.data.mixture.others.rust", "0.5")
    with pytest.raises(UserError, match=r"^--corpus.others has no 'c', which the mixture of a.co"):
        overridden(TWO, "--code.data.mixture.others", "c", "0.5")
    with pytest.raises(UserError, match=r"^--corpus.others has 'C': a source's name has"):
        overridden(TWO, "--corpus.others", "C", "x")


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
