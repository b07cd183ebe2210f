"""Preparation of documents: complete, cached, repeated after a kill, safe in several processes.

It works without TensorFlow.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from array_record.python import array_record_module
from etils import epath
from paths import ROOT
from prepared_corpora import documents

from codellama_jax.config import CorpusConfig
from codellama_jax.data import builders
from codellama_jax.data.prepare import parts, shards
from codellama_jax.data.prepare.readers import files as file_reader
from codellama_jax.errors import UserError
from codellama_jax.system import locks

IMPORTS = """
import sys
from codellama_jax.config import CorpusConfig
from codellama_jax.data import builders

def prepare(*arguments):
    corpus = CorpusConfig(code=sys.argv[1], validation_fraction=0.2)
    return builders.prepare(corpus, "code", 0, sys.argv[2], *arguments)
"""


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

    def fail(*_):
        pytest.fail("prepared although cached")

    monkeypatch.setattr(builders, "Preparation", fail)
    monkeypatch.setattr(file_reader, "open_file", fail)
    again = builders.prepare(corpus, "code", 0, str(tmp_path / "cache"))
    assert documents(again.train) == documents(first.train) and again.counts == first.counts
    assert again.fingerprint == first.fingerprint
    # Each differs in one field alone: two at once would hide one that the cache ignores.
    for change in ({"validation_fraction": 0.3}, {"max_files": 20}):
        with pytest.raises(pytest.fail.Exception):
            changed = dataclasses.replace(corpus, **change)
            builders.prepare(changed, "code", 0, tmp_path / "cache")
    (tmp_path / "corpus" / "f0.py").write_text("changed = True\n")
    with pytest.raises(pytest.fail.Exception):
        builders.prepare(corpus, "code", 0, tmp_path / "cache")


def test_every_number_of_files_has_its_own_cache(corpus, tmp_path):
    def prepared(max_files, cache):
        some = dataclasses.replace(corpus, max_files=max_files)
        return builders.prepare(some, "code", 0, tmp_path / cache)

    texts = {}
    for number in (10, 20, 30):
        corpus_of_number = prepared(number, "cache")
        texts[number] = documents(corpus_of_number.train) | documents(corpus_of_number.validation)
        # Not one of the others' caches was read: an empty one gives the same documents.
        elsewhere = prepared(number, f"cache of {number}")
        assert corpus_of_number.fingerprint == elsewhere.fingerprint
    assert set(texts[10]) < set(texts[20]) < set(texts[30])
    # All files, and more than there are, are one corpus.
    folders = len(list((tmp_path / "cache").iterdir()))
    for number in (0, 41, 100):
        assert prepared(number, "cache").counts["files"] == 40
    assert len(list((tmp_path / "cache").iterdir())) == folders + 1


def test_a_sample_in_the_cache_of_all_files_is_prepared_again(corpus, tmp_path, monkeypatch):
    """Versions that left `max_files` out of the folder's name wrote such caches."""
    monkeypatch.setattr(builders, "fingerprint_of", lambda _: "of all files")
    sample = dataclasses.replace(corpus, max_files=20)
    assert builders.prepare(sample, "code", 0, tmp_path / "cache").counts["files"] <= 20
    lines = []
    prepared = builders.prepare(corpus, "code", 0, tmp_path / "cache", lines.append)
    assert len(list((tmp_path / "cache").iterdir())) == 1 and prepared.counts["files"] == 40
    assert any("is a sample: preparing all files" in line for line in lines)
    lines.clear()
    builders.prepare(corpus, "code", 0, tmp_path / "cache", lines.append)
    assert lines == []


# Of a version whose cache did not depend on max_files, of 20 of 30 files.
EARLIER_SAMPLE = "a4fc1e01d0159f76"


def test_the_fingerprint_of_a_sample_is_that_of_earlier_versions(tmp_path):
    """Runs with `max_files` resume by it, and other runs read their stages."""
    (tmp_path / "corpus").mkdir()
    for i in range(30):
        (tmp_path / "corpus" / f"f{i}.py").write_text(f"def f{i}():\n    return {i}\n")
    corpus = CorpusConfig(str(tmp_path / "corpus"), validation_fraction=0.2, max_files=20)
    prepared = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert prepared.counts["files"] == 20 and prepared.fingerprint == EARLIER_SAMPLE


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
        builders.Preparation = None  # must not be called
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
    preparation, cache = builders.Preparation, tmp_path / "cache"

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)

    def overtaken(*args):
        monkeypatch.setattr(builders, "Preparation", preparation)
        builders.prepare(corpus, "code", 0, cache)
        return preparation(*args)

    monkeypatch.setattr(builders, "Preparation", overtaken)
    prepared = builders.prepare(corpus, "code", 0, cache)
    assert len(prepared.train) and len(list(cache.rglob("dataset_info.json"))) == 1


def test_one_line_for_a_cache_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot prepare the corpus in .*cache.*: Not a directory"):
        builders.prepare(corpus, "code", 0, tmp_path / "cache")


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/corpus/file")


class FullWriter:
    """ArrayRecord's writer on a full disk."""

    def __init__(self, *_):
        pass

    def write(self, record):
        raise RuntimeError("write() failed: No space left on device\nwriting /tmp/x\nat line 3")


@pytest.mark.parametrize(
    "module, name",
    [
        (parts.pq, "ParquetWriter"),
        (array_record_module, "ArrayRecordWriter"),
        (shards, "copy_file"),
        (builders, "write_json"),
        (builders, "_fingerprint"),
    ],
)
@pytest.mark.parametrize("part_bytes", [2**28, 500])
def test_a_full_disk_leaves_nothing_behind(corpus, tmp_path, monkeypatch, module, name, part_bytes):
    cache = tmp_path / "cache"

    def full(*_, **__):
        raise NO_SPACE

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="No space left on device") as error,
    ):
        patch.setattr(module, name, FullWriter if module is array_record_module else full)
        options = functools.partial(builders.InputOptions, part_bytes=part_bytes)
        patch.setattr(builders, "InputOptions", options)
        builders.prepare(corpus, "code", 0, cache)
    assert "\n" not in str(error.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert len(builders.prepare(corpus, "code", 0, cache).train)


def test_an_interrupt_leaves_nothing_behind(corpus, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(builders, "_fingerprint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        builders.prepare(corpus, "code", 0, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def refused(folder):
    """Returns the message about a corpus that is too small to train on."""
    with pytest.raises(UserError, match="one to train and one to validate") as error:
        builders.prepare(CorpusConfig(code=str(folder)), "code", 0, folder.parent / "cache")
    line = str(error.value)
    assert "\n" not in line and "text files in UTF-8, one document per file, or tables" in line
    assert not [path for path in (folder.parent / "cache").rglob("*") if path.is_file()]
    return line


def test_one_line_for_a_corpus_without_use(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in "ab":
        (tmp_path / "corpus" / name).write_bytes(b"\xff\xfe")
    line = refused(tmp_path / "corpus")
    assert line.startswith(f"of the 2 documents of the corpus 0 can be used ({tmp_path / 'corpus'}")
    assert "Left out: 2 not in UTF-8 (first: corpus/a). Add files" in line


UNUSABLE = {
    "rows.jsonl": ("1 damaged", "no JSON\n", "#0"),
    "numbers.jsonl": ("1 tables without a column of text", '{"size": 1}\n', ""),
    "notes.ipynb": ("1 damaged", '{"cells": ["%s"]}' % ("x" * 2000), ""),
    "archive.zip": ("1 binary", b"PK\3\4\0\0", ""),
    "page.min.js": ("1 with a long line", "var x=1;" * 700, ""),
    "table.py": ("1 of data instead of words", "0x0000, 1234,\n" * 50, ""),
    "wide.py": ("1 with long lines on average", ("word " * 30 + "\n") * 9, ""),
    "made.py": ("1 generated", "# Generated by tools/make.py\nx = 1\n", ""),
    "empty.py": ("1 empty", " \n", ""),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_the_reason_is_named_with_a_file(tmp_path, name):
    """Of a folder whose files are of one kind that is not read."""
    reason, content, row = UNUSABLE[name]
    (tmp_path / "corpus").mkdir()
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "corpus" / name).write_bytes(data)
    (tmp_path / "corpus" / "good.py").write_text("value = 1\n")
    assert f"Left out: {reason} (first: corpus/{name}{row}). Add" in refused(tmp_path / "corpus")


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "part-0.parquet").write_bytes(b"PAR1\0\0PAR1")
    (tmp_path / "corpus" / "good.py").write_text("value = 1\n")
    with pytest.raises(UserError, match=r"corpus/part-0\.parquet is truncated or damaged") as error:
        builders.prepare(CorpusConfig(code=str(tmp_path / "corpus")), "code", 0, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_files_that_are_all_alike(tmp_path):
    (tmp_path / "corpus").mkdir()
    for number in range(5):
        (tmp_path / "corpus" / f"copy{number}.py").write_text("value = 1\n")
    line = refused(tmp_path / "corpus")
    assert line.startswith("of the 5 documents of the corpus 1 can be used")
    assert "Left out: 4 equal to another document (first: corpus/copy1.py). Add" in line
    lines = [f"value_{number} = compute({number})\n" for number in range(100)]
    for number in range(5):
        text = "".join([*lines[:number], "inserted = 1\n", *lines[number:]])
        (tmp_path / "corpus" / f"copy{number}.py").write_text(text)
    assert "4 nearly equal to another document (first: corpus/copy1.py)" in refused(
        tmp_path / "corpus"
    )


def test_one_file_is_a_corpus_if_it_holds_documents(tmp_path):
    (tmp_path / "alone.py").write_text("value = 1\n")
    line = refused(tmp_path / "alone.py")
    assert line.startswith("of the 1 documents of the corpus 1 can be used")
    rows = "".join(json.dumps({"text": f"value = {number}\n"}) + "\n" for number in range(9))
    (tmp_path / "rows.jsonl").write_text(rows)
    corpus = CorpusConfig(code=str(tmp_path / "rows.jsonl"), validation_fraction=0.2)
    prepared = builders.prepare(corpus, "code", 0, tmp_path / "cache")
    texts = documents(prepared.train) | documents(prepared.validation)
    assert sorted(texts.values()) == [f"value = {number}\n" for number in range(9)]
    name = tmp_path.name
    assert min(texts) == f"{name}/rows.jsonl#0"


def test_a_folder_with_everything(tmp_path):
    """Hidden files, links, pipes and names that are not UTF-8."""
    folder = tmp_path / "corpus"
    code = "".join(f"def function_{i}(x):\n    return x + {i}\n" for i in range(9))
    kept = {
        "src/a.py": code,
        "src/b.rs": "fn main() {\r\n}\r\n",
        "naïve.txt": "é" * 50,
        "deep/er/c.md": "some words of prose\n" * 50,
    }
    dropped = {
        ".git_hidden/config": "x = 1",
        "src/.env": "secret",
        "latin.py": "é = 1".encode("latin-1"),
        "empty.py": " \n",
        "image.png": b"\x89PNG\r\n\x1a\n\0\0",
        "text.bin": b"abc\0def",
        "gen.py": "# Generated by tools/make.py\nx = 1\n",
    }
    for name, content in (kept | dropped).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "link.py").symlink_to(folder / "src/a.py")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"odd\xff")).write_text("any bytes name a file\n")
    kept["odd\\udcff"] = "any bytes name a file\n"
    prepared = builders.prepare(CorpusConfig(code=str(folder)), "code", 0, tmp_path / "cache")
    texts = documents(prepared.train) | documents(prepared.validation)
    assert texts == {f"corpus/{name}": text for name, text in kept.items()}
    counts = {"files": 5, "not_utf8": 1, "binary": 2, "empty": 1, "generated": 1}
    splits = {"train": 4, "validation": 1, "characters": sum(map(len, kept.values()))}
    assert prepared.counts == counts | splits


def test_files_that_vanish_after_they_were_listed(corpus, tmp_path, monkeypatch):
    preparation = builders.Preparation

    def changed(*args):
        for name in ("f0.py", "f1.py", "f2.py"):
            (tmp_path / "corpus" / name).unlink()
        os.mkfifo(tmp_path / "corpus" / "f1.py")  # reading it would wait for ever
        (tmp_path / "corpus" / "f2.py").mkdir()
        return preparation(*args)

    monkeypatch.setattr(builders, "Preparation", changed)
    lines = []
    prepared = builders.prepare(corpus, "code", 0, tmp_path / "cache", lines.append)
    assert prepared.counts["files"] == 37 and prepared.counts["unreadable"] == 3
    assert "3 unreadable (first: corpus/f0.py)" in lines[-1]


# Of the version before the stages of `prepare`: sha256 of the ids and texts in the order of files.
EARLIER = {0: "82f89dd51c141692", 60: "1c72d3cbfa62afc5"}


@pytest.mark.parametrize("block_chars", EARLIER)
def test_the_fingerprint_is_that_of_earlier_versions(tmp_path, block_chars):
    """Run folders of these versions resume by it. Of equal files the first by name is kept."""
    folder = tmp_path / "corpus"
    (folder / "sub" / "deep").mkdir(parents=True)
    for i in range(30):
        place = folder / ("", "sub", "sub/deep", "zoo")[i % 4]
        place.mkdir(exist_ok=True)
        text = "".join(f"def f{j}():\n    return {i * j}\n\n\n" for j in range(i + 3))
        (place / f"f{i}.py").write_text(text)
    # A folder's files come before those of its subfolders in a walk, and after them by name.
    for name in ("zzz.py", "sub/deep/copy.py", "sub/copy.py"):
        (folder / name).write_text("value = 'the same in three files'\n")
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    corpus = CorpusConfig(code=str(folder), validation_fraction=0.2)
    prepared = builders.prepare(corpus, "code", block_chars, tmp_path / "cache")
    names = files(prepared.train) | files(prepared.validation)
    assert "corpus/sub/copy.py" in names and len(names) == 31
    assert prepared.fingerprint == EARLIER[block_chars]
    splits = {}
    for split in ("train", "validation"):
        shard = getattr(prepared, split)
        ids = [shard[i]["id"].decode() for i in range(len(shard))]
        # Documents come in the order of a hash, as in a dataset that TFDS writes.
        assert ids == sorted(ids, key=lambda name: hashlib.md5(f"{split}{name}".encode()).digest())
        by_file = {}
        texts = documents(shard)
        for name in sorted(texts, key=lambda name: int(name.partition("#")[2] or 0)):
            by_file.setdefault(name.partition("#")[0], []).append((name, texts[name]))
        splits[split] = [block for file in sorted(by_file) for block in by_file[file]]
    assert hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16] == EARLIER[block_chars]


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
