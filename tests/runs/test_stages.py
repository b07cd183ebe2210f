"""Stages resolved once: a finished one needs neither its first weights nor its documents."""

import contextlib
import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, StageFolder
from codellama_jax.checkpoints.identity import identity as identity_of
from codellama_jax.config import CorpusConfig, Experiment, MeshConfig, TokenizerConfig, to_dict
from codellama_jax.errors import UserError
from codellama_jax.runs import experiment as runs
from codellama_jax.runs import probing, training
from codellama_jax.runs.commands import RunOptions
from codellama_jax.runs.stages import resolve
from codellama_jax.runs.training import stage_identity
from codellama_jax.sharding.hosts import Stopped
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.system.files import read_state, write_json
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.training.step import abstract_state

IDENTITY = "0" * 32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    lines = [f"def name_{i}(x):\n    return x + {i}\n" for i in range(300)]
    return tokenizers.train(lines, 320, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def finished(tmp_path, tokenizer):
    """The experiment of a run whose stage has finished, its first weights and documents gone."""
    gone = tmp_path / "gone"
    tokenizer.save(tmp_path / tokenizers.FILE)
    model = dataclasses.replace(toy.MODEL, vocab_size=tokenizer.vocab_size)
    stage = toy.stage(model=model, init=f"hf:{gone}")
    experiment = Experiment(
        "x",
        "toy",
        {"main": {"code": stage}},
        TokenizerConfig(str(tmp_path / tokenizers.FILE)),
        CorpusConfig(code=str(gone)),
    )
    folder = RunFolder(epath.Path(tmp_path) / "run").stage("main", "code")
    folder.begin(stage, IDENTITY)
    folder.mark_done(step=10, tokens=100)
    documents = [stage.data.block_chars, stage.data.seq_len, experiment.seed]
    config = to_dict(experiment.probes) | {"documents": documents}
    folder.probes.write_text(json.dumps({"config": config}))
    return experiment


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs an experiment in this process."""
    monkeypatch.setattr(runs, "keep_compiled", lambda cache: None)
    monkeypatch.setattr(runs, "write_report", lambda *arguments: None)

    def started(experiment: Experiment, fresh: bool = False) -> None:
        out, cache = str(tmp_path / "run"), str(tmp_path / "cache")
        choice = RunOptions("x", out=out, cache=cache, fresh=fresh)
        runs.run_experiment(experiment, "a claim", None, choice)

    return started


def test_a_finished_stage_needs_neither_weights_nor_documents(finished, start, capsys):
    start(finished)
    assert "main/code: done before, skipped" in capsys.readouterr().out


@pytest.mark.parametrize("fresh", [False, True])
def test_an_unfinished_stage_needs_its_weights(finished, start, tmp_path, fresh):
    if not fresh:
        RunFolder(epath.Path(tmp_path) / "run").stage("main", "code").done.unlink()
    with pytest.raises(UserError, match="gone"):
        start(finished, fresh)


def test_stages_run_seed_by_seed_and_follow_each_other(tmp_path):
    chain = {"code": toy.stage(), "long": toy.stage(init="previous")}
    experiment = Experiment("x", "toy", {"a": chain, "b": chain}, seed=5, seeds=2)
    folder, mesh = RunFolder(epath.Path(tmp_path)), make_mesh(MeshConfig())
    stages = resolve(experiment, experiment.arms, folder, mesh)
    assert [str(stage) for stage in stages] == [
        f"{arm}/{name}" for arm in ("a", "b", "a@1", "b@1") for name in ("code", "long")
    ]
    assert [stage.seed for stage in stages[:6]] == [5, 6, 5, 6, 1_000_008, 1_000_009]
    assert stages[5].chain == stages[4:6]
    assert stages[0].initial is None
    assert stages[1].initial is stages[1].initial
    first = dataclasses.replace(stages[0], stage=chain["long"])
    with pytest.raises(UserError, match="the first stage of an arm has none before it"):
        first.check()
    other = dataclasses.replace(toy.MODEL, d_model=64)
    grown = dataclasses.replace(stages[1], stage=toy.stage(model=other, init="previous"))
    with pytest.raises(UserError, match=r"a/code holds another model: d_model is 32 there and 64"):
        grown.check()


def test_equal_stages_are_traced_once():
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    assert abstract_state(toy.stage(), mesh) is abstract_state(toy.stage(), mesh)
    assert abstract_state(toy.stage(), mesh) is not abstract_state(toy.stage(steps=11), mesh)


def test_a_run_that_was_trained_again_is_another_start(tmp_path):
    """Only a stage that starts from a run has another identity than before."""
    run = StageFolder(epath.Path(tmp_path) / "run")
    run.begin(toy.stage(), IDENTITY)
    run.mark_done(step=10, tokens=100)
    corpus = SimpleNamespace(sources=lambda stage: {}, tokenizer=SimpleNamespace(fingerprint="t"))

    def identity(init: str) -> str:
        folder, stage = StageFolder(epath.Path(tmp_path) / "new"), toy.stage(init=init)
        return stage_identity(corpus, SimpleNamespace(folder=folder, stage=stage, seed=1), "")

    first = identity(f"run:{run}")
    assert identity(f"run:{run}") == first
    run.identity_file.write_text("1" * 32)
    assert len({identity(f"run:{run}"), identity(f"run:{run}@3"), first}) == 3
    shared = [{}, "t", str(run)]
    for init, expected in (("scratch", shared[:2]), (f"hf:{run}", shared)):
        assert identity(init) == identity_of(toy.stage(init=init), "", 1, expected)


def test_a_resumed_stage_and_its_successor_have_one_identity_before_and_after_its_end(tmp_path):
    """Processes of a run claim stages by it: with two of them, two would train the next stage."""
    corpus = SimpleNamespace(sources=lambda stage: {}, tokenizer=SimpleNamespace(fingerprint="t"))
    run = RunFolder(epath.Path(tmp_path))
    first = SimpleNamespace(folder=run.stage("arm", "general"), stage=toy.stage(), seed=1)
    after = toy.stage(init="previous")
    second = SimpleNamespace(folder=run.stage("arm", "code"), stage=after, seed=2)
    computed = stage_identity(corpus, first, "")
    # Begun by a version, or on documents, that gave another identity.
    first.folder.begin(toy.stage(), IDENTITY)
    assert stage_identity(corpus, first, "") == computed != IDENTITY  # nothing to resume
    first.folder.checkpoint(5).mkdir(parents=True)
    identities = []
    for _ in range(2):
        identity = stage_identity(corpus, first, "")
        identities.append((identity, stage_identity(corpus, second, identity)))
        first.folder.begin(toy.stage(), identity)
        first.folder.mark_done(step=10, tokens=100)
    assert identities[0] == identities[1]
    assert identities[0][0] == IDENTITY


class _Counted:
    """A corpus of one source per stage, whose counts are those that it was asked for."""

    tokenizer = SimpleNamespace(fingerprint="t", save=lambda path: None, file_name="tokenizer")

    def __init__(self) -> None:
        self.read: list[int] = []

    def sources(self, stage) -> dict:
        self.read.append(stage.data.seq_len)
        return {}

    def save_counts(self, path) -> None:
        write_json(path, (read_state(path) or {}) | dict.fromkeys(map(str, self.read), 1))


def test_documents_of_finished_stages_are_counted_though_a_later_one_is_stopped(
    tmp_path, monkeypatch
):
    """A resume does not read them again, and the report has a row for each source."""
    chain = {"code": toy.stage(), "long": toy.stage(seq_len=32, init="previous")}
    experiment = Experiment("x", "toy", {"main": chain})
    folder, mesh = RunFolder(epath.Path(tmp_path)), make_mesh(MeshConfig(), jax.devices()[:1])
    stages = resolve(experiment, experiment.arms, folder, mesh)

    def finish(corpus, stage) -> None:
        stage.folder.mark_done(step=10, tokens=100)

    def stop_at_second(corpus, stage) -> None:
        if stage.before:
            raise Stopped(15)
        finish(corpus, stage)

    monkeypatch.setattr(training, "probe_stage", lambda *arguments: None)
    monkeypatch.setattr(training, "train", stop_at_second)
    with pytest.raises(Stopped):
        training.run_stages(experiment, _Counted(), folder, stages, "")
    monkeypatch.setattr(training, "train", finish)
    training.run_stages(experiment, _Counted(), folder, stages, "")
    lengths = {str(stage.data.seq_len) for stage in chain.values()}
    assert read_state(folder.corpus).keys() == lengths


def test_a_model_was_trained_on_the_stages_whose_weights_it_continues(monkeypatch):
    @contextlib.contextmanager
    def batches_of(corpus, stage, seed, lanes):
        yield itertools.repeat(seed)

    monkeypatch.setattr(probing, "batches_of", batches_of)
    inits = ("scratch", "previous", "scratch", "previous")
    parts = []
    for seed, init in enumerate(inits):
        parts.append(SimpleNamespace(seed=seed, stage=toy.stage(init=init, steps=1)))
    expected = [[0], [0, 1], [2], [2, 3]]
    for count, seeds in enumerate(expected, 1):
        last = SimpleNamespace(chain=parts[:count])
        assert list(probing.batches_trained_on(None, last)) == seeds
