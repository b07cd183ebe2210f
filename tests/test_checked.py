"""Every leaf of a config takes a sane value or gives one line that names it."""

import copy
import dataclasses
import json
import math
import typing
from typing import Annotated, Literal, Optional

import hypothesis.strategies as st
import numpy as np
import pytest
import toy
from hypothesis import given, settings

from codellama_jax import overrides
from codellama_jax.checked import Checked, FieldError, Pattern, Range, check_all, unchecked
from codellama_jax.command_line import cli
from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    InfillingConfig,
    MeshConfig,
    MixtureConfig,
    ModelConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
    from_dict,
    leaves,
    to_dict,
)
from codellama_jax.errors import UserError
from codellama_jax.models.layers import REMAT_POLICIES
from codellama_jax.probes import Completions, InfillingKinds, KeyRetrieval, LineEnds, Perplexity
from codellama_jax.runs.commands import PlanOptions, options_type
from kernels import flash_attention

PROBES = {
    "perplexity": Perplexity((8, 16)),
    "completions": Completions(("def f",)),
    "infilling_kinds": InfillingKinds(("single-line",)),
    "key_retrieval": KeyRetrieval((8,)),
    "line_ends": LineEnds((0.1,)),
}
EXPERIMENT = Experiment("e", "toy", {"main": {"code": toy.stage()}}, probes=PROBES)
VALUES = (0, -1, -5, 1, 7, 0.5, math.nan, math.inf, -math.inf, 10**12, -(10**12), 10**400)
HUGE = 2**31


def leaf_paths() -> list[str]:
    return sorted(leaves(to_dict(EXPERIMENT)))


def replaced(values: dict, path: str, value) -> dict:
    """Returns the nested dicts with one leaf replaced; a list's only item where it is a list."""
    changed = copy.deepcopy(values)
    *parents, name = path.split(".")
    node = changed
    for parent in parents:
        node = node[parent]
    node[name] = [value] if isinstance(node[name], list) else value
    return changed


def check_one_line(line: str, path: str) -> None:
    assert line.startswith((path, path.rpartition(".")[0])), line
    assert "\n" not in line and len(line) < 400
    assert any(word in line for word in ("must", "has no", "at most one", "every axis", "give"))


def check_sane(config: Experiment) -> None:
    """No number of an accepted config can hang, overflow or divide by zero later."""
    for name, value in leaves(to_dict(config)).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float):
                assert math.isfinite(number) and abs(number) <= 1e15, name
            if isinstance(number, int):
                assert -1 <= number < HUGE, name
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("path", leaf_paths())
def test_a_leaf_of_a_file_is_accepted_and_sane_or_one_line(path):
    values = to_dict(EXPERIMENT)
    for value in (*VALUES, "", "mispelt", True, None, {}, [], "9" * 400):
        try:
            check_sane(from_dict(Experiment, replaced(values, path, value)))
        except FieldError as error:
            check_one_line(str(error), path)


@pytest.mark.parametrize("path", leaf_paths())
def test_a_wrong_type_is_refused(path):
    values, kind = to_dict(EXPERIMENT), type(leaves(to_dict(EXPERIMENT))[path])
    if kind is list:
        kind = type(leaves(to_dict(EXPERIMENT))[path][0])
    wrong = {
        bool: (1, 0.0, "true", None),
        int: ("1", True, 1.0, None),
        float: ("1", True, None),
        str: (1, True, None),
    }
    for value in (*wrong[kind], {}, [[]]):
        with pytest.raises(FieldError) as raised:
            from_dict(Experiment, replaced(values, path, value))
        assert str(raised.value).startswith(path)


@pytest.mark.parametrize(
    "path",
    [
        "arms.main.code.data.batch_size",
        "arms.main.code.data.mixture.code",
        "arms.main.code.model.n_heads",
        "arms.main.code.steps",
        "corpus.max_files",
        "probes.perplexity.lengths",
        "seed",
    ],
)
def test_the_command_line_prints_the_line_of_the_library_with_the_option(path):
    leaf = leaves(to_dict(EXPERIMENT))[path]
    value = -5.0 if isinstance(leaf, float) else -5
    with pytest.raises(FieldError) as raised:
        from_dict(Experiment, replaced(to_dict(EXPERIMENT), path, value))
    names = path.split(".")[2:] if path.startswith("arms.") else path.split(".")
    option = f"--{'.'.join(names)}".replace("_", "-")
    assert command_line_problem([option, "-5"]) == option + raised.value.problem


def command_line_problem(arguments: list[str]) -> str | None:
    """Returns the error that overriding EXPERIMENT with options gives, None if there is none."""
    try:
        parsed = cli(
            options_type(PlanOptions("e"), EXPERIMENT), args=["e", *arguments], prog="launch.py"
        )
        names = overrides.options(EXPERIMENT)
        overrides.apply(EXPERIMENT, {name: getattr(parsed, name) for name in names})
    except UserError as error:
        return str(error)
    return None


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(leaf_paths()),
        st.one_of(
            st.integers(),
            st.floats(),
            st.text(max_size=8),
            st.booleans(),
            st.none(),
            st.lists(st.integers(), max_size=2),
            st.sampled_from(VALUES),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_config_file_is_accepted_and_sane_or_one_line(changes):
    values = to_dict(EXPERIMENT)
    for path, value in changes.items():
        values = replaced(values, path, value)
    try:
        check_sane(from_dict(Experiment, values))
    except FieldError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize(
    "build, line",
    [
        (
            lambda: dataclasses.replace(toy.MODEL, n_kv_heads=3),
            "n_kv_heads is 3: it must divide n_heads",
        ),
        (lambda: dataclasses.replace(toy.MODEL, head_dim=7), "head_dim is 7: it must be even"),
        (
            lambda: dataclasses.replace(toy.MODEL, remat="ful"),
            "remat is 'ful': it must be one of none, dots, full; did you mean full?",
        ),
        (
            lambda: dataclasses.replace(toy.MODEL, attention="fast"),
            "attention is 'fast': it must be one of '', pallas_tpu",
        ),
        (
            lambda: dataclasses.replace(toy.MODEL, vocab_size="64"),
            "vocab_size is '64': it must be a whole number",
        ),
        (lambda: MixtureConfig(code=math.inf), "code is inf: it must be a finite number"),
        (lambda: MixtureConfig(python=-1), "python is -1: it must be at least 0"),
        (
            lambda: MixtureConfig(code=1.0, python=1e-9),
            "python is 1e-09: it must be 0 or at least 0.0001 of all shares",
        ),
        (lambda: CorpusConfig(max_files=-1), "max_files is -1: it must be at least 0"),
        (
            lambda: CorpusConfig(validation_fraction=2),
            "validation_fraction is 2: it must be below 1",
        ),
        (lambda: CorpusConfig(code=""), "code is '': it must be the name of a file or folder"),
        (lambda: TokenizerConfig(pieces=0), "pieces is 0: it must be at least 275"),
        (lambda: InfillingConfig(rate=-1), "rate is -1: it must be at least 0"),
        (
            lambda: DataConfig(16, 8, MixtureConfig(), block_chars=-5),
            "block_chars is -5: it must be at least 0",
        ),
        (lambda: OptimizerConfig(-1e-3), "peak_lr is -0.001: it must be at least 0"),
        (lambda: OptimizerConfig(1e-3, b1=math.nan), "b1 is nan: it must be a finite number"),
        (lambda: OptimizerConfig(1e-3, eps=1e-300), "eps is 1e-300: it must be at least 1e-30"),
        (lambda: OptimizerConfig(1e-3, clip_norm=0), "clip_norm is 0: it must be at least 1e-30"),
        (lambda: MeshConfig(tensor=0), "tensor is 0: every axis is a positive number"),
        (lambda: MeshConfig(data=-1), "data is -1, and so is fsdp: at most one is -1"),
        (lambda: toy.stage(steps=-5), "steps is -5: it must be at least 0"),
        (
            lambda: toy.stage(steps=10**400),
            r"steps is 10+\.\.\. \(401 digits\): it must be at most 2,147,483,647",
        ),
        (lambda: toy.stage(keep_checkpoints=0), "keep_checkpoints is 0: it must be at least 1"),
        (
            lambda: toy.stage(init="scrath"),
            "init is 'scrath': it must be scratch, previous, run:DIR",
        ),
        (
            lambda: toy.stage(micro_batches=3),
            "micro_batches is 3: it must divide data.batch_size, which is 8",
        ),
        (
            lambda: Stage(toy.MODEL, DataConfig(16, 8, MixtureConfig()), OptimizerConfig(1e-3), 5),
            "data.mixture is empty: give one of code, python, discussions, language a share",
        ),
        (lambda: Perplexity((0,)), "lengths is 0: it must be at least 1"),
        (lambda: Perplexity(()), "lengths is empty: give at least one value, or stages none"),
        (
            lambda: Perplexity((8,), stages="first"),
            "stages is 'first': it must be one of all, last, none",
        ),
        (
            lambda: Experiment("e", "toy", EXPERIMENT.arms, probes={"keys": Perplexity((8,))}),
            "probes.keys is the probe perplexity: give it under its own name",
        ),
        (
            lambda: Experiment("a" * 5000, "toy", EXPERIMENT.arms),
            r"name is 'a+\.\.\. \(5,000 characters\)",
        ),
        (lambda: Experiment("e", "toy", {}), "arms is empty"),
        (lambda: Experiment("e", "toy", {"main": {}}), "arms.main has no stage"),
        (lambda: Experiment("e", "toy", {"a/b": EXPERIMENT.arms["main"]}), "arms has 'a/b'"),
        (lambda: Experiment("e", "toy", {"main": {"mesh": toy.stage()}}), "no stage may be called"),
        (lambda: Experiment("e", "toy", {"main": {"a b": toy.stage()}}), "has the stage 'a b'"),
        (
            lambda: Experiment("e", "toy", EXPERIMENT.arms, seeds=0),
            "seeds is 0: it must be at least 1",
        ),
        (
            lambda: Experiment("e", "toy", EXPERIMENT.arms, seed=-1),
            "seed is -1: it must be at least 0",
        ),
        (lambda: Experiment("e", "toy", None), "arms is None: it must be a dict"),
    ],
)
def test_one_line_names_the_field(build, line):
    with pytest.raises(FieldError, match=line) as raised:
        build()
    assert "\n" not in str(raised.value)


def test_choices_are_those_of_the_code():
    hints = typing.get_type_hints(ModelConfig)
    assert set(typing.get_args(hints["attention"])) == {"", *flash_attention.IMPLEMENTATIONS}
    assert set(typing.get_args(hints["remat"])) == {"none", *REMAT_POLICIES}


def test_an_import_is_a_config():
    """Imported weights are a stage of 0 steps without mixture and learning rate."""
    data = DataConfig(seq_len=16, batch_size=1, mixture=MixtureConfig())
    stage = Stage(toy.MODEL, data, OptimizerConfig(peak_lr=0.0), steps=0, init="hf:folder")
    assert from_dict(Stage, to_dict(stage)) == stage


@dataclasses.dataclass(frozen=True)
class Sample(Checked):
    maybe: Optional[Annotated[int, Range(0, 9)]] = None  # noqa: UP045
    either: Annotated[float, Range(0, 1, open_least=True, open_most=True)] | None = None
    kinds: tuple[Literal["a", "b"], ...] = ()
    name: Annotated[str, Pattern("[a-z]+", "small letters")] = "x"
    inner: MixtureConfig | None = None


def test_from_dict_builds_every_kind_of_field():
    assert from_dict(Sample, {}) == Sample()
    built = from_dict(Sample, {"maybe": 3, "either": 0.5, "kinds": ["a"], "inner": {"code": 1}})
    assert built == Sample(3, 0.5, ("a",), inner=MixtureConfig(code=1.0))
    assert isinstance(built.inner.code, float)


@pytest.mark.parametrize(
    "values, line",
    [
        ({"maybe": 10}, "maybe is 10: it must be at most 9"),
        ({"maybe": True}, "maybe is True: it must be a whole number"),
        ({"either": 0}, "either is 0: it must be above 0"),
        ({"either": 1}, "either is 1: it must be below 1"),
        ({"kinds": ["c"]}, "kinds is 'c': it must be one of a, b"),
        ({"kinds": "a"}, "kinds is 'a': it must be a list"),
        ({"name": "X"}, "name is 'X': it must be small letters"),
        ({"inner": {"code": -1}}, "inner.code is -1: it must be at least 0"),
        ({"inner": 3}, "inner is 3: it must be a group of fields"),
        ({"inner": {"colour": 1}}, "inner: MixtureConfig has no field colour"),
        (5, "is 5: it must be a group of fields"),
    ],
)
def test_from_dict_names_the_path(values, line):
    with pytest.raises(FieldError, match=line):
        from_dict(Sample, values)


def test_from_dict_names_a_probe_that_does_not_exist():
    values = to_dict(EXPERIMENT) | {"probes": {"perplexty": {}}}
    with pytest.raises(
        FieldError, match=r"^probes\.perplexty must be one of the probes .*line_ends"
    ):
        from_dict(Experiment, values)


def test_from_dict_names_a_missing_field():
    values = to_dict(EXPERIMENT)
    del values["arms"]["main"]["code"]["data"]["seq_len"]
    with pytest.raises(
        FieldError, match=r"arms\.main\.code\.data: DataConfig lacks the field seq_len"
    ):
        from_dict(Experiment, values)


def test_numbers_of_numpy_become_python_s():
    stage = toy.stage(steps=np.int64(4), optimizer=OptimizerConfig(np.float32(0.5), eps=1))
    assert type(stage.steps) is int and type(stage.optimizer.peak_lr) is float
    assert json.dumps(to_dict(stage.optimizer)).count("1.0")
    assert hash(dataclasses.replace(PROBES["key_retrieval"], lengths=[1, 2])) is not None


def test_what_is_built_unchecked_is_checked_with_its_path():
    with unchecked():
        stage = toy.stage(data=DataConfig(16, 0, MixtureConfig(code=1.0)))
    with pytest.raises(FieldError, match=r"data\.batch_size is 0: it must be at least 1"):
        check_all(stage)
