"""The fields that decide what a stage becomes, and a config that grows."""

import dataclasses
import json
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import toy
from etils import epath
from golden_cases import EXPERIMENTS, identities
from hypothesis import given, settings
from paths import GOLDEN

from codellama_jax.checked import unchecked
from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.checkpoints.identity import ALWAYS_HASHED, changes, identity
from codellama_jax.config import (
    FREE,
    DataConfig,
    Experiment,
    InfillingConfig,
    Stage,
    from_dict,
    leaves,
    to_dict,
)
from codellama_jax.errors import UserError
from codellama_jax.runs.folder import check_folder, opened_folder

FREE_FIELDS = {
    "model.remat": "full",
    "model.attention": "xla",
    "micro_batches": 2,
    "log_every": 7,
    "checkpoint_every": 9,
    "keep_checkpoints": 1,
}


@dataclass(frozen=True)
class Smoothing:
    """A group of fields that today's stage does not have."""

    amount: float = 0.5
    seen: bool = field(default=False, metadata=FREE)


@dataclass(frozen=True)
class LaterData(DataConfig):
    reversed: bool = False


@dataclass(frozen=True)
class LaterStage(Stage):
    """A stage of a later version, with more fields than today's."""

    data: LaterData
    averaged_steps: int = 0
    smoothing: Smoothing = Smoothing(0.25)
    sharpening: Smoothing | None = None
    verbose: bool = field(default=False, metadata=FREE)


@dataclass(frozen=True)
class LaterExperiment(Experiment):
    arms: dict[str, dict[str, LaterStage]]


def changed(config, name: str, value):
    """Returns a config with the field of this dotted name changed."""
    first, _, rest = name.partition(".")
    part = changed(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: part})


def later(stage: Stage) -> LaterStage:
    return from_dict(LaterStage, to_dict(stage))


def experiment_of(stage: Stage, cls: type = Experiment) -> Experiment:
    return cls("x", "toy", {"main": {"code": stage}})


@pytest.mark.parametrize("name", leaves(to_dict(toy.stage())))
def test_every_field_but_the_free_ones_decides(name):
    stage = toy.stage()
    value = leaves(to_dict(stage))[name]
    other = FREE_FIELDS.get(name, f"{value}x" if isinstance(value, str) else value + 1)
    with unchecked():  # "float32x" stands for any other value
        different = changed(stage, name, other)
    same = identity(stage, "before", 0) == identity(different, "before", 0)
    assert same == (name in FREE_FIELDS) == (changes(to_dict(stage), different) == [])


@pytest.mark.parametrize("name, scale", EXPERIMENTS)
def test_stages_keep_the_identities_of_the_first_versions(name, scale):
    golden = json.loads((GOLDEN / "identities.json").read_text())
    assert identities(name, scale) == golden[f"{name}-{scale}"]


def test_a_field_that_holds_its_default_changes_no_identity():
    stage = toy.stage()
    assert identity(later(stage), "before", 0) == identity(stage, "before", 0)
    assert set(leaves(to_dict(stage))) >= ALWAYS_HASHED


@pytest.mark.parametrize(
    "name, value",
    [
        ("averaged_steps", 3),
        ("data.reversed", True),
        ("smoothing.amount", 0.5),  # the default of the group, not that of the stage
        ("sharpening", Smoothing()),
    ],
)
def test_a_new_field_decides_where_it_differs_from_its_default(name, value):
    stage = later(toy.stage())
    assert identity(changed(stage, name, value), "", 0) != identity(stage, "", 0)


@pytest.mark.parametrize("name", ["verbose", "smoothing.seen"])
def test_a_new_free_field_never_decides(name):
    stage = later(toy.stage())
    assert identity(changed(stage, name, True), "", 0) == identity(stage, "", 0)


def test_a_tag_among_the_values_decides(monkeypatch):
    stage = toy.stage()
    before = identity(stage, "", 0)

    def tagged(config: object) -> dict:
        return {**to_dict(config), "family": "other"}

    monkeypatch.setattr("codellama_jax.checkpoints.identity.to_dict", tagged)
    assert identity(stage, "", 0) != before


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_run_of_today_resumes_after_the_config_has_grown(tmp_path, is_damaged):
    """Compared are the config of the run or, where that is damaged, those of its stages."""
    run = RunFolder(epath.Path(tmp_path) / "run")
    with opened_folder(experiment_of(toy.stage()), run, fresh=False):
        run.stage("main", "code").begin(toy.stage(), identity="")
    if is_damaged:
        run.config.write_bytes(b"")
    stage = later(toy.stage())
    check_folder(experiment_of(stage, LaterExperiment), run)
    check_folder(experiment_of(changed(stage, "verbose", True), LaterExperiment), run)
    refused = experiment_of(changed(stage, "averaged_steps", 3), LaterExperiment)
    with pytest.raises(UserError) as error:
        check_folder(refused, run)
    problem = "holds a run with another config (arms.main.code.averaged_steps: 0 -> 3): choose"
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_of_a_later_version_is_refused_by_the_name_of_its_field(tmp_path):
    run = RunFolder(epath.Path(tmp_path) / "run")
    stage = changed(later(toy.stage()), "averaged_steps", 3)
    with opened_folder(experiment_of(stage, LaterExperiment), run, fresh=False):
        pass
    with pytest.raises(UserError, match=r"arms\.main\.code\.averaged_steps: 3 -> None"):
        check_folder(experiment_of(toy.stage()), run)


def test_seed_documents_and_the_stage_before_decide():
    follows, scratch = toy.stage(init="previous"), toy.stage()
    assert identity(follows, "a", 0) != identity(follows, "b", 0)
    assert identity(scratch, "a", 0) == identity(scratch, "b", 0)
    assert identity(scratch, "", 0) != identity(scratch, "", 1)
    assert identity(scratch, "", 0, ["documents"]) != identity(scratch, "", 0, ["others"])


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.floats(0, 1), st.floats(0, 1))
def test_equal_configs_have_one_identity(a, b):
    first, second = (
        changed(toy.stage(), "data.infilling", InfillingConfig(rate)) for rate in (a, b)
    )
    assert (identity(first, "", 0) == identity(second, "", 0)) == (a == b)
