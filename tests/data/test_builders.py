"""Preparation of documents: complete, cached, repeated after a kill, safe in several processes.

It works without TensorFlow.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import tensorflow_datasets as tfds
from etils import epath
from paths import ROOT

from codellama_jax.config import CorpusConfig
from codellama_jax.data import builders, pipeline, sources
from codellama_jax.errors import UserError
from codellama_jax.system import locks

IMPORTS = """
import sys
from codellama_jax.config import CorpusConfig
from codellama_jax.data import builders, sources

def prepare(*arguments):
    corpus = CorpusConfig(code=sys.argv[1], validation_fraction=0.2)
    return builders.prepare(corpus, "code", 0, sys.argv[2], *arguments)
"""


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(40):
        (folder / f"f{i}.py").write_text(
            "".join(f"def f{j}():\n    return {i * j}\n\n\n" for j in range(i + 3))
        )
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    return CorpusConfig(code=str(folder), validation_fraction=0.2)


def documents(split):
    return {split[i]["id"].decode(): pipeline.text_of(split[i]) for i in range(len(split))}


def files(prepared_split):
    return {name.partition("#")[0] for name in documents(prepared_split)}


def run(program, *args):
    """Starts a fresh Python that runs `program` with the library imported."""
    return subprocess.Popen(
        [sys.executable, "-c", IMPORTS + textwrap.dedent(program), *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_every_file_is_in_one_split(corpus, tmp_path, capfd):
    prepared = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    train, validation = documents(prepared.train), documents(prepared.validation)
    assert train | validation == {
        f"corpus/f{i}.py": (tmp_path / "corpus" / f"f{i}.py").read_text() for i in range(40)
    }
    assert len(train) + len(validation) == 40 and 2 <= len(validation) <= 16
    assert prepared.counts["not_utf8"] == 1 and prepared.counts["files"] == 40
    assert (prepared.counts["train"], prepared.counts["validation"]) == (
        len(train),
        len(validation),
    )
    assert capfd.readouterr() == ("", "")
    assert "tensorflow" not in sys.modules


def test_blocks_keep_to_their_files_split(corpus, tmp_path):
    whole, cut = (builders.prepare(corpus, "code", chars, tmp_path / "cache") for chars in (0, 60))
    assert files(cut.train) == files(whole.train) and files(cut.validation) == files(
        whole.validation
    )
    parts = documents(cut.train)
    assert len(parts) > len(whole.train) and max(map(len, parts.values())) <= 60
    for name, text in documents(whole.train).items():
        count = sum(part.startswith(f"{name}#") for part in parts)
        assert "".join(parts[f"{name}#{i}"] for i in range(count)) == text


def test_a_new_file_leaves_the_others_in_their_split(corpus, tmp_path):
    before = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    (tmp_path / "corpus" / "new.py").write_text("something = 'else entirely'\n")
    after = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert files(after.train) | files(after.validation) == files(before.train) | files(
        before.validation
    ) | {"corpus/new.py"}
    assert files(before.train) <= files(after.train) and files(before.validation) <= files(
        after.validation
    )


def test_prepared_once(corpus, tmp_path, monkeypatch):
    first = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    monkeypatch.setattr(sources, "load", lambda *_: pytest.fail("prepared although cached"))
    again = builders.prepare(corpus, "code", 0, str(tmp_path / "cache"))
    assert documents(again.train) == documents(first.train) and again.counts == first.counts
    for other in (
        CorpusConfig(code=corpus.code, validation_fraction=0.3),
        CorpusConfig(code=corpus.code, max_files=20),
    ):
        with pytest.raises(pytest.fail.Exception):
            builders.prepare(other, "code", 0, tmp_path / "cache")
    (tmp_path / "corpus" / "f0.py").write_text("changed = True\n")
    with pytest.raises(pytest.fail.Exception):
        builders.prepare(corpus, "code", 0, tmp_path / "cache")


def test_the_fingerprint_is_of_the_text_wherever_it_was_prepared(corpus, tmp_path):
    first = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert (
        builders.prepare(corpus, "code", 0, tmp_path / "elsewhere").fingerprint == first.fingerprint
    )
    path = tmp_path / "corpus" / "f0.py"
    path.write_text(path.read_text().replace("def", "abc"))
    after = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert after.counts == first.counts and after.fingerprint != first.fingerprint


def test_a_small_corpus_has_both_splits(corpus, tmp_path):
    for fraction in (0.0, 1e-9, 0.999):
        small = CorpusConfig(code=corpus.code, max_files=3, validation_fraction=fraction)
        prepared = builders.prepare(small, "code", 0, tmp_path / "cache")
        assert (
            len(prepared.train) >= 1
            and len(prepared.validation) >= 1
            and len(prepared.train) + len(prepared.validation) == 3
        )


def test_a_killed_preparation_is_done_again_and_two_at_once_agree(corpus, tmp_path):
    kill = """
        import os, signal
        # All files are written, but not the record that names them.
        builders.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        prepare()
    """
    killed = run(kill, corpus.code, tmp_path / "cache")
    assert killed.wait(120) == -9
    assert list((tmp_path / "cache").rglob("*.array_record*")) and not list(
        (tmp_path / "cache").glob("*/prepared.json")
    )
    both = """
        train = prepare().train
        names = sorted(train[i]["id"].decode() for i in range(len(train)))
        print(names, "tensorflow" in sys.modules)
    """
    programs = [run(both, corpus.code, tmp_path / "cache") for _ in range(2)]
    outputs = [p.communicate(timeout=120)[0].decode() for p in programs]
    expected = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert outputs == [f"{sorted(documents(expected.train))} False\n"] * 2


def test_two_at_once_read_the_corpus_once(corpus, tmp_path):
    """The second process waits for this one, which has the lock."""
    builders.prepare(corpus, "code", 0, tmp_path / "elsewhere")
    (prepared,) = (tmp_path / "elsewhere").iterdir()
    second = """
        sources.load = None  # must not be called
        prepare(lambda line: print(line, flush=True))
    """
    folder = epath.Path(tmp_path) / "cache" / prepared.name
    with locks.one_after_another(folder, print):
        waiting = run(second, corpus.code, folder.parent)
        line = next(line for line in waiting.stdout if b"waiting" in line).decode()
        assert line.startswith(f"{folder} is being written by process {os.getpid()} on ")
        shutil.copytree(prepared, folder)
    assert waiting.communicate(timeout=60)[0] == b"" and waiting.returncode == 0
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # and no lock


def test_the_slower_of_two_without_locks_uses_the_cache_of_the_other(corpus, tmp_path, monkeypatch):
    load, cache = sources.load, tmp_path / "cache"

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)

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
        raise RuntimeError(
            'Failed to finalize writing of split "train": write() failed: No space left on device'
        )

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="No space left on device") as error,
    ):
        patch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", full)
        builders.prepare(corpus, "code", 0, cache)
    assert "\n" not in str(error.value) and not [
        path for path in cache.rglob("*") if path.is_file()
    ]
    assert len(builders.prepare(corpus, "code", 0, cache).train)


def test_one_line_for_a_corpus_without_use(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in "ab":
        (tmp_path / "corpus" / name).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="of the 2 files of the corpus 0 can be used"):
        builders.prepare(CorpusConfig(code=str(tmp_path / "corpus")), "code", 0, tmp_path / "cache")


UNUSABLE = {
    "rows.jsonl": ("1 JSON lines", '{"text": "%s"}\n' % ("x" * 200)),
    "part-0.parquet": ("1 parquet tables", b"PAR1\0\0PAR1"),
    "notes.ipynb": ("1 notebooks", '{"cells": ["%s"]}' % ("x" * 2000)),
    "page.min.js": ("1 with a line over 1,000 characters", "var x=1;" * 700),
    "table.py": ("1 of data: under 40% of its visible characters", "0x0000, 1234,\n" * 50),
    "wide.py": ("1 with lines over 100 characters on average", ("word " * 30 + "\n") * 9),
    "made.py": ("1 marked as generated", "# Generated by tools/make.py\nx = 1\n"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_the_reason_is_named_with_a_file(tmp_path, name):
    """Of a folder whose files are of one kind that is not read."""
    reason, content = UNUSABLE[name]
    (tmp_path / "corpus").mkdir()
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "corpus" / name).write_bytes(data)
    (tmp_path / "corpus" / "good.py").write_text("value = 1\n")
    with pytest.raises(UserError, match="one to train and one to validate") as error:
        builders.prepare(CorpusConfig(code=str(tmp_path / "corpus")), "code", 0, tmp_path / "cache")
    line = str(error.value)
    assert reason in line and f"(first: corpus/{name})" in line and "\n" not in line
    assert "a corpus is a folder of plain text files in UTF-8" in line


def test_files_that_are_all_alike(tmp_path):
    (tmp_path / "corpus").mkdir()
    for number in range(5):
        (tmp_path / "corpus" / f"copy{number}.py").write_text("value = 1\n")
    with pytest.raises(UserError, match=r"of the 5 files of the corpus 1 can be used") as error:
        builders.prepare(CorpusConfig(code=str(tmp_path / "corpus")), "code", 0, tmp_path / "cache")
    assert "4 nearly equal to another file (first: corpus/copy1.py)" in str(error.value)


def _damages():
    empty, nul = b"", b"\0" * 64
    return {
        "empty": lambda data: empty,
        "nul": lambda data: nul,
        "half": lambda data: data[: len(data) // 2],
        "flipped": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
        "list": lambda data: b"[]",
    }


@pytest.mark.parametrize("damage", _damages())
def test_a_damaged_cache_is_prepared_again(corpus, tmp_path, damage):
    cache, lines = tmp_path / "cache", []
    first = builders.prepare(corpus, "code", 0, cache)
    expected = documents(first.train), first.fingerprint
    names = ("prepared.json", "dataset_info.json", "features.json", "*train.array_record*")
    for name in names:
        (record,) = cache.glob("*/prepared.json")
        newest = record.parent / json.loads(record.read_text())["path"]
        (path,) = [record] if name == "prepared.json" else newest.glob(name)
        before = path.read_bytes()
        path.write_bytes(_damages()[damage](before))
        again = builders.prepare(corpus, "code", 0, cache, lines.append)
        assert (documents(again.train), again.fingerprint) == expected, name
    warnings = [line for line in lines if "is damaged" in line]
    assert len(warnings) == (len(names) if damage != "flipped" else len(warnings)) >= len(names) - 1


def test_a_cache_of_an_earlier_version_is_read(corpus, tmp_path, monkeypatch):
    """Its prepared.json has no checksums."""
    first = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/prepared.json")
    record = json.loads(path.read_text())
    assert record.pop("files")
    path.write_text(json.dumps(record, indent=1))
    monkeypatch.setattr(sources, "load", lambda *_: pytest.fail("prepared although cached"))
    again = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert documents(again.train) == documents(first.train)


def test_a_home_folder_as_cache(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    builders.prepare(corpus, "code", 0, "~/cache")
    assert list(tmp_path.glob("cache/*/prepared.json")) and not (tmp_path / "~").exists()


def test_counts_are_reported_once_prepared(corpus, tmp_path):
    lines = []
    prepared = builders.prepare(corpus, "code", 0, tmp_path / "cache", lines.append)
    characters = f"{prepared.counts['characters']:,}"
    left_out = "left out: 1 not in UTF-8 (first: corpus/latin.py)"
    assert lines[-1] == f"code: 40 files, {characters} characters; {left_out}"
    lines.clear()
    builders.prepare(corpus, "code", 0, tmp_path / "cache", lines.append)
    assert lines == []
