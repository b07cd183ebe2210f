"""Preparation of documents: complete, found again, redone after a kill, safe for processes at once, and free of TensorFlow."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from codellama_jax.config import CorpusConfig
from codellama_jax.data import builders, pipeline, sources
from codellama_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(40):
        (folder / f"f{i}.py").write_text("".join(f"def f{j}():\n    return {i * j}\n\n\n" for j in range(i + 3)))
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    return CorpusConfig(code=str(folder), validation_fraction=0.2)


def documents(split):
    return {split[i]["id"].decode(): pipeline.text_of(split[i]) for i in range(len(split))}


def files(prepared_split):
    return {name.partition("#")[0] for name in documents(prepared_split)}


def run(program, *args):
    """Starts a fresh Python that runs `program` with the library imported."""
    program = "import sys\nfrom codellama_jax.config import CorpusConfig\nfrom codellama_jax.data import builders\n" + textwrap.dedent(
        program
    )
    return subprocess.Popen([sys.executable, "-c", program, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_every_file_is_in_one_split(corpus, tmp_path, capfd):
    prepared = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    train, validation = documents(prepared.train), documents(prepared.validation)
    assert train | validation == {f"corpus/f{i}.py": (tmp_path / "corpus" / f"f{i}.py").read_text() for i in range(40)}
    assert len(train) + len(validation) == 40 and 2 <= len(validation) <= 16
    assert prepared.counts["not_utf8"] == 1 and prepared.counts["files"] == 40
    assert (prepared.counts["train"], prepared.counts["validation"]) == (len(train), len(validation))
    assert capfd.readouterr() == ("", "")
    assert "tensorflow" not in sys.modules


def test_blocks_keep_to_their_files_split(corpus, tmp_path):
    whole, cut = (builders.prepare(corpus, "code", chars, tmp_path / "cache") for chars in (0, 60))
    assert files(cut.train) == files(whole.train) and files(cut.validation) == files(whole.validation)
    parts = documents(cut.train)
    assert len(parts) > len(whole.train) and max(map(len, parts.values())) <= 60
    for name, text in documents(whole.train).items():
        assert "".join(parts[f"{name}#{i}"] for i in range(sum(p.startswith(name + "#") for p in parts))) == text


def test_a_new_file_leaves_the_others_in_their_split(corpus, tmp_path):
    before = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    (tmp_path / "corpus" / "new.py").write_text("something = 'else entirely'\n")
    after = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert files(after.train) | files(after.validation) == files(before.train) | files(before.validation) | {"corpus/new.py"}
    assert files(before.train) <= files(after.train) and files(before.validation) <= files(after.validation)


def test_prepared_once(corpus, tmp_path, monkeypatch):
    first = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    monkeypatch.setattr(sources, "load", lambda *_: pytest.fail("prepared although cached"))
    again = builders.prepare(corpus, "code", 0, str(tmp_path / "cache"))
    assert documents(again.train) == documents(first.train) and again.counts == first.counts
    for other in (CorpusConfig(code=corpus.code, validation_fraction=0.3), CorpusConfig(code=corpus.code, max_files=20)):
        with pytest.raises(pytest.fail.Exception):
            builders.prepare(other, "code", 0, tmp_path / "cache")
    (tmp_path / "corpus" / "f0.py").write_text("changed = True\n")
    with pytest.raises(pytest.fail.Exception):
        builders.prepare(corpus, "code", 0, tmp_path / "cache")


def test_the_fingerprint_is_of_the_text_wherever_it_was_prepared(corpus, tmp_path):
    first = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert builders.prepare(corpus, "code", 0, tmp_path / "elsewhere").fingerprint == first.fingerprint
    path = tmp_path / "corpus" / "f0.py"
    path.write_text(path.read_text().replace("def", "abc"))
    after = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert after.counts == first.counts and after.fingerprint != first.fingerprint


def test_a_small_corpus_has_both_splits(corpus, tmp_path):
    for fraction in (0.0, 1e-9, 1.0):
        small = CorpusConfig(code=corpus.code, max_files=3, validation_fraction=fraction)
        prepared = builders.prepare(small, "code", 0, tmp_path / "cache")
        assert len(prepared.train) >= 1 and len(prepared.validation) >= 1 and len(prepared.train) + len(prepared.validation) == 3


def test_a_killed_preparation_is_done_again_and_two_at_once_agree(corpus, tmp_path):
    kill = """
        import os, signal
        from etils import epath
        type(epath.Path()).replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # all written, nothing published
        builders.prepare(CorpusConfig(code=sys.argv[1], validation_fraction=0.2), "code", 0, sys.argv[2])
    """
    killed = run(kill, corpus.code, tmp_path / "cache")
    assert killed.wait(120) == -9
    assert list((tmp_path / "cache").rglob("*.array_record*")) and not list((tmp_path / "cache").glob("*/prepared.json"))
    both = """
        p = builders.prepare(CorpusConfig(code=sys.argv[1], validation_fraction=0.2), "code", 0, sys.argv[2])
        print(sorted(p.train[i]["id"].decode() for i in range(len(p.train))), "tensorflow" in sys.modules)
    """
    programs = [run(both, corpus.code, tmp_path / "cache") for _ in range(2)]
    outputs = [p.communicate(timeout=120)[0].decode() for p in programs]
    wanted = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert outputs == [f"{sorted(documents(wanted.train))} False\n"] * 2


def test_the_slower_of_two_takes_what_is_there(corpus, tmp_path, monkeypatch):
    load, cache = sources.load, tmp_path / "cache"

    def overtaken(*args):
        monkeypatch.setattr(sources, "load", load)
        builders.prepare(corpus, "code", 0, cache)
        return load(*args)

    monkeypatch.setattr(sources, "load", overtaken)
    prepared = builders.prepare(corpus, "code", 0, cache)
    assert len(prepared.train) and len(list(cache.rglob("dataset_info.json"))) == 1


def test_one_line_for_a_cache_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot prepare the corpus in .*cache.*: Not a directory"):
        builders.prepare(corpus, "code", 0, tmp_path / "cache")


def test_a_full_disk_leaves_nothing_behind(corpus, tmp_path, monkeypatch):
    prepare, cache = tfds.core.DatasetBuilder.download_and_prepare, tmp_path / "cache"

    def full(*args, **kwargs):
        prepare(*args, **kwargs)
        raise RuntimeError('Failed to finalize writing of split "train": write() failed: No space left on device')

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device") as error:
        patch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", full)
        builders.prepare(corpus, "code", 0, cache)
    assert "\n" not in str(error.value) and not [path for path in cache.rglob("*") if path.is_file()]
    assert len(builders.prepare(corpus, "code", 0, cache).train)


def test_one_line_for_a_corpus_without_use(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in "ab":
        (tmp_path / "corpus" / name).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="of the 2 files of the corpus 0 can be used"):
        builders.prepare(CorpusConfig(code=str(tmp_path / "corpus")), "code", 0, tmp_path / "cache")
