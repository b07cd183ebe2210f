"""Data stages: written once, continued after a kill, read where they are equal, written anew."""

import dataclasses
import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from etils import epath
from toy import stage

from codellama_jax.checked import FieldError
from codellama_jax.checkpoints.folder import RunFolder, StageFolder
from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    MixtureConfig,
    from_dict,
    to_dict,
)
from codellama_jax.data_stage import DataStage
from codellama_jax.errors import UserError
from codellama_jax.runs import data_stages
from codellama_jax.runs.stages import ResolvedData, resolve
from codellama_jax.system.files import write_json

TOKENIZER = SimpleNamespace(fingerprint="t")


@dataclass(frozen=True)
class Lines(DataStage, kind="lines_of_a_test"):
    """Writes one line in every call, as one that is killed after each line."""

    output = "lines.jsonl"
    count: int = 2
    model: str = "base"

    def models(self):
        return (self.model,)

    def amounts(self):
        return f"{self.count} lines"

    def make(self, answerers, folder, seed):
        path = folder / self.output
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("".join(f"{line}\n" for line in [*lines, f"{seed} {len(lines)}"]))
        if len(lines) + 1 < self.count:
            raise InterruptedError
        return {"lines": self.count, "reasons": {}}


@pytest.fixture
def base(tmp_path):
    """A trained stage."""
    folder = StageFolder(epath.Path(tmp_path / "run" / "a" / "base"))
    folder.begin(stage(), "0" * 32)
    folder.mark_done(10, 100)
    return SimpleNamespace(folder=folder)


def resolved(base, arm="a", config=Lines(), seed=1):
    place = StageFolder(base.folder.path.parent.parent / arm / "lines")
    return ResolvedData("lines", seed, config, place, {"base": base})


def text_of(data):
    return (data.folder.trained().path / data.stage.output).read_text()


def test_a_killed_stage_continues_and_a_finished_one_is_not_written_again(base, capsys):
    data = resolved(base)
    with pytest.raises(InterruptedError):
        data_stages.write(data, TOKENIZER, {})
    assert not data.folder.is_trained()
    for _ in range(2):
        data_stages.write(data, TOKENIZER, {})
    assert text_of(data) == "1 0\n1 1\n"
    assert json.loads(data.folder.done.read_text())["counts"]["lines"] == 2
    assert "a/lines: done before, skipped" in capsys.readouterr().out


def test_an_equal_stage_is_read_and_another_one_is_written(base):
    one = Lines(count=1)
    trained = {}
    first, equal, other = (
        resolved(base, arm, one, seed) for arm, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for data in (first, equal, other):
        data_stages.write(data, TOKENIZER, trained)
    assert not (equal.folder.path / one.output).exists()
    assert text_of(equal) == text_of(first) == "1 0\n"
    assert text_of(other) == "2 0\n"


def test_a_resumed_run_does_not_write_equal_data_for_the_next_arm_again(base):
    """The models may write others, and the arms would differ in their data."""
    first, equal = (resolved(base, arm, Lines(count=1)) for arm in ("a", "b"))
    data_stages.write(first, TOKENIZER, {})
    trained = {}
    for data in (first, equal):
        data_stages.write(data, TOKENIZER, trained)
    assert equal.folder.trained() == first.folder


def test_answers_of_another_model_are_not_continued(base):
    data = resolved(base)
    with pytest.raises(InterruptedError):
        data_stages.write(data, TOKENIZER, {})
    base.folder.identity_file.write_text("1" * 32)
    with pytest.raises(InterruptedError):
        data_stages.write(data, TOKENIZER, {})
    assert text_of(data) == "1 0\n"


def test_answers_of_a_run_that_was_trained_again_are_not_continued(base):
    data = resolved(base, config=Lines(model=str(base.folder.path)))
    for identity in ("1", "2"):
        base.folder.identity_file.write_text(identity * 32)
        with pytest.raises(InterruptedError):
            data_stages.write(data, TOKENIZER, {})
        assert text_of(data) == "1 0\n"


def test_a_model_that_is_no_stage_is_looked_for_before_training(base):
    data = resolved(base, config=Lines(model="./absent"))
    with pytest.raises(UserError, match=r"there is no folder .*absent"):
        data_stages.check(data)


def test_data_without_a_line_are_one_message(base, monkeypatch):
    def make(self, answerers, folder, seed):
        (folder / self.output).write_text("")
        return {"kept": 0, "reasons": {"no tests": 3}}

    monkeypatch.setattr(Lines, "make", make)
    with pytest.raises(UserError, match=r"kept nothing .3 x no tests.: train the models longer"):
        data_stages.write(resolved(base), TOKENIZER, {})


def reading(shares=None, **changes):
    """Returns an experiment whose second stage reads the data."""
    data = DataConfig(16, 8, MixtureConfig(code=0.5, others=shares or {"lines": 0.5}))
    stages = {"base": stage(), "tuned": stage(data=data, init="previous")}
    fields = {"arms": {"a": stages}, "data_stages": {"lines": Lines()}, **changes}
    return Experiment("e", "toy", **fields)


def test_an_experiment_with_data_stages_survives_its_file():
    experiment = reading()
    values = to_dict(experiment)
    assert values["data_stages"] == {
        "lines": {"kind": "lines_of_a_test", "count": 2, "model": "base"}
    }
    assert from_dict(Experiment, values) == experiment
    # Older versions wrote no such field.
    assert "data_stages" not in to_dict(
        dataclasses.replace(experiment, arms={"a": {"b": stage()}}, data_stages={})
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data_stages": {}}, "corpus.others has no 'lines'"),
        ({"data_stages": {"lines": Lines(model="bass")}}, "names the model 'bass'"),
        ({"data_stages": {"base": Lines(), "lines": Lines()}}, "also a stage of an arm"),
        ({"data_stages": {"code": Lines(), "lines": Lines()}}, "has 'code', which has a separate"),
    ],
)
def test_a_mistake_names_the_field(changes, problem):
    with pytest.raises(FieldError, match=problem):
        reading(**changes)


def test_the_first_stage_of_an_arm_reads_no_data_of_its_models():
    arms = reading().arms["a"]
    with pytest.raises(
        FieldError, match=r"data_stages.lines is read by tuned, the first of an arm"
    ):
        reading(arms={"a": {"tuned": dataclasses.replace(arms["tuned"], init="scratch")}})


def test_a_file_replaces_the_stage_and_seeds_have_separate_data(tmp_path):
    experiment = reading(seeds=2)
    run = RunFolder(epath.Path(tmp_path))
    stages = resolve(experiment, experiment.arms, run, None)
    places = [[str(data) for data in resolved.data] for resolved in stages]
    assert places == [[], ["a/lines"], [], ["a@1/lines"]]
    assert stages[1].data[0].stages == {"base": stages[0]}
    assert stages[1].data[0].seed != stages[3].data[0].seed
    given = reading(corpus=CorpusConfig(others={"lines": "file.jsonl"}))
    assert not any(resolved.data for resolved in resolve(given, given.arms, run, None))


def test_a_stage_reads_the_data_of_its_arm(tmp_path):
    experiment = reading()
    run = RunFolder(epath.Path(tmp_path))
    _, tuned = resolve(experiment, experiment.arms, run, None)
    write_json(tuned.data[0].folder.done, {"at": "../../b/lines"})
    corpus = SimpleNamespace(experiment=experiment, prepared={})
    paths = data_stages.with_data(corpus, tuned).experiment.corpus.paths()
    assert paths["lines"] == str(tmp_path / "b" / "lines" / "lines.jsonl")
    assert "lines" not in experiment.corpus.paths()
