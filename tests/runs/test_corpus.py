"""The corpora of a run: checked at the start, sampled for the tokenizer and the probes."""

import dataclasses
import json
from types import SimpleNamespace

import prepared_corpora
import published
import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.identity import changes
from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    MixtureConfig,
    TokenizerConfig,
    to_dict,
)
from codellama_jax.errors import UserError
from codellama_jax.runs import corpus as corpora
from codellama_jax.runs.corpus import Corpus, check_prepared
from codellama_jax.weights import gguf_writing

SPLITS = {"train": prepared_corpora.texts(300), "validation": prepared_corpora.texts(30, "v")}
MIXTURE = MixtureConfig(code=0.75, others={"java": 0.25})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return prepared_corpora.write(tmp_path_factory.mktemp("corpora") / "one", SPLITS)


def experiment(code, java, block_chars=0):
    data = DataConfig(16, 8, MIXTURE, block_chars=block_chars)
    return Experiment(
        "e",
        "toy",
        {"main": {"code": toy.stage(data=data)}},
        TokenizerConfig(pieces=320),
        CorpusConfig(code=code, others={"java": java}),
    )


def stages(config):
    return [SimpleNamespace(name="code", stage=config.arms["main"]["code"])]


def checked(config, record, fresh=False):
    return check_prepared(config, stages(config), record, fresh)


def test_a_moved_corpus_is_the_same_and_a_changed_one_is_refused(path, tmp_path):
    record = tmp_path / "corpora.json"
    first = checked(experiment(path, path), record)
    assert set(first) == {"code", "java"} and len(set(first.values())) == 1
    record.write_text(json.dumps(first))
    (tmp_path / "moved").symlink_to(path.removeprefix("prepared:"))
    moved = experiment(f"prepared:{tmp_path}/moved", path)
    assert checked(moved, record) == first
    assert changes(to_dict(experiment(path, path)), moved) == []
    assert changes(to_dict(moved), experiment("stdlib", path)) != []
    other = prepared_corpora.write(tmp_path / "other", SPLITS | {"train": {"a": "b"}})
    with pytest.raises(
        UserError, match=r"of java has the fingerprint .*, and this run was started"
    ):
        checked(experiment(path, other), record)
    assert checked(experiment(path, other), record, fresh=True) != first
    # Of stages that are trained no corpus is needed.
    assert check_prepared(experiment("prepared:gone", path), [], record, False) == first


def test_documents_split_otherwise_are_refused_before_the_first_stage(path, tmp_path):
    with pytest.raises(
        UserError, match=r"--code.data.block-chars is 99, and the documents of code"
    ):
        checked(experiment(path, path, block_chars=99), tmp_path / "corpora.json")


def test_a_tokenizer_is_trained_on_a_stated_sample(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpora, "MAX_TRAINING_CHARS", 20_000)
    corpus = Corpus(experiment(path, path), str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    counts = corpus.samples["code"]
    documents, characters = counts["tokenizer documents"], counts["tokenizer characters"]
    assert 0 < documents < 300 and 15_000 <= characters < 15_600
    assert 5_000 <= corpus.samples["java"]["tokenizer characters"] < 5_600
    stated = f"{documents} of 300 documents drawn at random, {characters:,} characters (seed 0)"
    assert f"tokenizer: code: {stated}" in lines
    corpus.save_counts(tmp_path / "corpus.json")
    assert json.loads((tmp_path / "corpus.json").read_text())["code"].items() >= counts.items()
    again = Corpus(experiment(path, path), str(tmp_path / "elsewhere"))
    assert again.tokenizer.fingerprint == corpus.tokenizer.fingerprint


def test_probes_read_a_sample_of_a_prepared_corpus(path, tmp_path, monkeypatch):
    config = experiment(path, path)
    first = dataclasses.replace(config.arms["main"]["code"])
    corpus = Corpus(config, str(tmp_path))
    every = corpus.held_out_texts("code", 0)
    assert sorted(every) == sorted(SPLITS["validation"].values())
    monkeypatch.setattr(corpora, "MAX_PROBED_CHARS", 500)
    some = corpus.held_out_texts("code", first.data.block_chars)
    assert 500 <= sum(map(len, some)) < 1000 and set(some) < set(every)
    assert len(corpus.prepared) == 2  # each source is opened once, whatever its blocks


def test_probes_read_the_files_named_for_them_and_a_tokenizer_may_be_a_gguf_file(path, tmp_path):
    source = published.source_of(published.random_params(published.MODEL), published.MODEL)
    gguf_writing.write(source, published.tokenizer(), epath.Path(tmp_path / "gguf"), "f32")
    others = {"train": {"a": "newer = 1\n"}, "validation": {"b": "newer = 2\n"}}
    newer = prepared_corpora.write(tmp_path / "newer", others)
    plain = dataclasses.replace(
        experiment(path, path),
        tokenizer=TokenizerConfig(str(tmp_path / "gguf" / "model.gguf")),
    )
    corpus = Corpus(plain, str(tmp_path / "cache"))
    assert corpus.tokenizer.encode("def f(x)") == published.tokenizer().encode("def f(x)")
    assert sorted(corpus.held_out_texts("code", 0)) == sorted(SPLITS["validation"].values())
    held_out = dataclasses.replace(plain.corpus, held_out=newer)
    corpus = Corpus(dataclasses.replace(plain, corpus=held_out), str(tmp_path / "cache"))
    assert sorted(corpus.held_out_texts("code", 0)) == ["newer = 1\n", "newer = 2\n"]
    assert to_dict(plain)["corpus"].get("held_out") is None
