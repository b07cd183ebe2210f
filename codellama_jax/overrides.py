"""Overrides of an experiment from the command line: `--code.optimizer.peak-lr 1e-3`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from codellama_jax.checked import FieldError
from codellama_jax.config import Experiment, Probe, Stage, TokenizerConfig, leaves, to_dict
from codellama_jax.errors import UserError
from codellama_jax.tokenizers.sentinels import appended_rows

# Fields of the experiment; every other first name is a stage.
SHARED = ("tokenizer", "corpus", "mesh", "probes", "seed", "seeds")


def options(experiment: Experiment) -> dict[str, Any]:
    """Returns the parts of an experiment that can be overridden, by the first name of the option.

    These are the stages (of the first arm that has one of that name), the data stages and the
    shared parts.
    """
    # One option for all arms that have a stage of that name; `apply` refuses where they differ.
    named: dict[str, Any] = {}
    for stages in experiment.arms.values():
        for name, stage in stages.items():
            named.setdefault(name, stage)
    shared = {name: getattr(experiment, name) for name in SHARED}
    named |= experiment.data_stages
    return named | shared | {"probes": _probe_options(experiment.probes)}


def _probe_options(probes: dict[str, Probe]) -> Any:
    """Returns the probes as a dataclass, whose fields become options."""
    # tyro has no options for the entries of a dict.
    fields: list[Any] = []
    for name, probe in probes.items():
        fields.append((name, type(probe), dataclasses.field(default=probe)))
    return dataclasses.make_dataclass("Probes", fields, frozen=True)()


def apply(experiment: Experiment, given: dict[str, Any]) -> Experiment:
    """Returns the experiment with the leaves that `given` changed of `options(experiment)`.

    A leaf changes in every arm. Raises UserError for a leaf in which the arms differ, since it
    would make them equal, and for values that contradict others, naming the option.
    """
    before = options(experiment)
    # Before any change, so that the message shows the values of the file.
    for name in given.keys() - set(SHARED) - experiment.data_stages.keys():
        _check_equal(experiment, name, before[name], given[name])
    try:
        arms: dict[str, dict[str, Stage]] = {}
        for arm, stages in experiment.arms.items():
            arms[arm] = {}
            for name, stage in stages.items():
                arms[arm][name] = _changed_stage(name, stage, before[name], given[name])
        shared = {name: given[name] for name in SHARED}
        shared["probes"] = {name: getattr(given["probes"], name) for name in experiment.probes}
        shared["data_stages"] = {name: given[name] for name in experiment.data_stages}
        changed = dataclasses.replace(experiment, arms=arms, **shared)
        return with_vocabulary_of(changed, experiment.tokenizer)
    except FieldError as error:
        raise error.as_option() from None


def warn(before: Experiment, after: Experiment) -> None:
    """Prints a line on stderr for each stage that trains otherwise than its options suggest.

    These are a learning rate that never reaches its peak, and a stage that now trains 0 steps.
    """
    old = options(before)
    # The options after all overrides: steps and warm-up may have been changed together.
    for name, stage in options(after).items():
        if not isinstance(stage, Stage):
            continue
        if stage.steps == 0 and old[name].steps:
            effect = "it trains nothing, and evaluates and saves the weights that it starts from"
            print(f"warning: --{_option(name)}.steps is 0: {effect}", file=sys.stderr)
        if 0 < stage.steps < stage.optimizer.warmup_steps:
            print(f"warning: {_short_of_peak(_option(name), stage)}", file=sys.stderr)


def _short_of_peak(option: str, stage: Stage) -> str:
    rate = stage.optimizer
    last = rate.peak_lr * stage.steps / rate.warmup_steps
    return (
        f"--{option}.optimizer.warmup-steps is {rate.warmup_steps} and --{option}.steps is"
        f" {stage.steps}: the learning rate ends at {last:.3g} and never reaches its peak,"
        f" {rate.peak_lr:.3g}; give fewer warm-up steps, such as {max(1, stage.steps // 10)}"
    )


def _option(name: str) -> str:
    return name.replace("_", "-")


def _check_equal(experiment: Experiment, name: str, before: Any, after: Any) -> None:
    """Raises UserError if an override changes a leaf in which the arms differ."""
    by_arm = {}
    for arm, stages in experiment.arms.items():
        if name in stages:
            by_arm[arm] = leaves(to_dict(stages[name]))
    old = leaves(to_dict(before))
    for leaf, value in leaves(to_dict(after)).items():
        # Another arm may lack the leaf: a further source of the mixture.
        values = {arm: stage.get(leaf) for arm, stage in by_arm.items()}
        first = next(iter(values.values()))
        if value != old.get(leaf) and any(other != first for other in values.values()):
            texts = (f"{arm} {_shown(other)}" for arm, other in values.items())
            reason = f"differs between the arms ({', '.join(texts)})"
            fix = "change it in a copy of the experiment file"
            raise UserError(f"--{_option(f'{name}.{leaf}')} {reason}: {fix}")


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _changed_stage(name: str, stage: Any, before: Any, after: Any) -> Any:
    try:
        return _changed(stage, before, after)
    except FieldError as error:
        raise error.under(name) from None


def _changed(value: Any, before: Any, after: Any) -> Any:
    """Returns a dataclass or dict with the leaves in which `after` differs from `before`.

    Other leaves keep the value of this arm, which may not be the first one's.
    """
    if isinstance(value, dict):
        return value | {key: new for key, new in after.items() if before.get(key) != new}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value if before == after else after
    changes = {}
    for field in dataclasses.fields(value):
        # Leaf by leaf: an override of one field must not carry the first arm's others along.
        parts = [getattr(config, field.name) for config in (value, before, after)]
        try:
            changes[field.name] = _changed(*parts)
        except FieldError as error:
            raise error.under(field.name) from None
    return dataclasses.replace(value, **changes)


def with_vocabulary_of(experiment: Experiment, before: TokenizerConfig) -> Experiment:
    """Returns the experiment with vocabularies that follow its tokenizer.

    `before` is the tokenizer that the experiment had before an override. A stage whose vocab_size
    was that of the tokenizer, with the infilling sentinels or without, gets that of the new one.
    """
    after = experiment.tokenizer
    sizes = {before.pieces: after.pieces}
    sizes[before.pieces + appended_rows(before.kind)] = after.pieces + appended_rows(after.kind)
    # A tokenizer that is read from a file has the size it has, whatever `pieces` is.
    if after == before or after.path:
        return experiment
    arms = {}
    for arm, stages in experiment.arms.items():
        arms[arm] = dict(stages)
        for name, stage in stages.items():
            if stage.model.vocab_size in sizes:
                size = sizes[stage.model.vocab_size]
                model = dataclasses.replace(stage.model, vocab_size=size)
                arms[arm][name] = dataclasses.replace(stage, model=model)
    return dataclasses.replace(experiment, arms=arms)
