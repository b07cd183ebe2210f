"""Inputs in parts: nothing lost or read twice, the same names everywhere."""

import errno
import json
import os
import pickle
import re
import shutil

import hypothesis
import hypothesis.strategies as st
import pytest

from codellama_jax.checked import FieldError
from codellama_jax.data import sources
from codellama_jax.data.prepare.inputs import (
    InputOptions,
    fingerprint_of,
    parts_of,
    parts_of_all,
    read_part,
    renumbered,
    sampled,
    sorted_by_name,
)
from codellama_jax.data.prepare.readers import files
from codellama_jax.data.prepare.readers.base import Slice
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.errors import UserError


def read_all(parts, options):
    results = []
    for part in parts:
        results += read_part(part, options)
    return results


def test_a_folder_of_everything(mixed):
    parts = parts_of(str(mixed), "in", InputOptions())
    results = read_all(parts, InputOptions())
    kept = {record.id: record for record in results if isinstance(record, Record)}
    dropped = {record.id: record.reason for record in results if isinstance(record, Dropped)}
    assert dropped == {"in/b/latin.txt": "not_utf8", "in/b/empty.txt": "empty"}
    in_tables = [name for name in kept if "#" in name]
    assert len(in_tables) == 5 * 5
    assert set(kept) - set(in_tables) == {
        "in/a.py",
        "in/b/long.txt",
        "in/repo/LICENSE",
        "in/repo/data.jsonl",
        "in/repo/src/main.go",
        "in/repo/third_party/inner/x.rs",
        "in/repo/zz.go",
        "in/z.md",
    }
    go = kept["in/repo/src/main.go"]
    assert go == Record(
        id="in/repo/src/main.go",
        text="package main\n",
        path="src/main.go",
        language="Go",
        repository="octo/cat",
        license="mit",
        stars=-1,
        source="in",
    )
    assert kept["in/repo/third_party/inner/x.rs"].repository == "inner"
    assert kept["in/a.py"].repository == "" and kept["in/a.py"].source == "in"
    assert kept["in/saved/train/data-00000-of-00001.arrow#4"].stars == 4
    assert [part.number for part in parts] == list(range(len(parts)))


@hypothesis.given(part_bytes=st.integers(1, 3000))
@hypothesis.settings(max_examples=25, deadline=None)
def test_parts_of_any_size_hold_the_same_records(mixed, part_bytes):
    large, small = InputOptions(), InputOptions(part_bytes=part_bytes)
    parts = parts_of(str(mixed), "in", small)
    records = read_all(parts, small)
    assert records == read_all(parts_of(str(mixed), "in", large), large)
    ids = [record.id for record in records]
    assert len(ids) == len(set(ids))
    for part in parts:
        assert part.size == sum(piece.size for piece in part.slices)
        assert part.size <= part_bytes or len(part.slices) == 1


def test_a_part_is_sent_to_a_worker(mixed):
    options = InputOptions(part_bytes=500)
    parts = parts_of(str(mixed), "in", options)
    assert len(parts) > 3
    for part in parts:
        copy = pickle.loads(pickle.dumps(part))
        assert copy == part
        copied_options = pickle.loads(pickle.dumps(options))
        assert list(read_part(copy, copied_options)) == list(read_part(part, options))


def test_several_inputs_are_numbered_one_after_the_other(mixed):
    options = InputOptions(part_bytes=500)
    first, second = parts_of(str(mixed), "a", options), parts_of(str(mixed), "b", options)
    parts = renumbered([*first, *second], first=7)
    assert [part.number for part in parts] == list(range(7, 7 + 2 * len(first)))
    ids = [record.id for record in read_all(parts, options)]
    assert len(ids) == len(set(ids))


def test_folders_of_the_same_name_have_different_ids(tmp_path, write_files):
    inputs = []
    for owner in ("one", "two", "three"):
        write_files(tmp_path / owner / "src", {"main.py": f"print({owner!r})\n"})
        inputs.append(str(tmp_path / owner / "src"))
    parts = parts_of_all(inputs, InputOptions())
    ids = [record.id for record in read_all(parts, InputOptions())]
    assert ids == ["src/main.py", "src-2/main.py", "src-3/main.py"]
    assert [part.number for part in parts] == [0, 1, 2]


def test_files_of_a_folder_have_the_ids_that_they_have_in_it(tmp_path, write_files):
    write_files(tmp_path / "src", {"a.py": "a\n", "b.py": "b\n"})
    inputs = [str(tmp_path / "src" / "a.py"), str(tmp_path / "src" / "b.py")]
    parts = parts_of_all(inputs, InputOptions())
    ids = [record.id for record in read_all(parts, InputOptions())]
    assert ids == ["src/a.py", "src/b.py"]


@pytest.mark.parametrize("inputs", [["src", "src/"], ["src/a.py", "src"], ["stdlib", "stdlib"]])
def test_no_input_is_read_twice(tmp_path, write_files, monkeypatch, inputs):
    write_files(tmp_path / "src", {"a.py": "a\n", "b.py": "b\n"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is part of the input .*leave one of them out"):
        parts_of_all(inputs, InputOptions())


def test_the_fingerprint_does_not_depend_on_the_place(mixed, tmp_path):
    copy = tmp_path / "elsewhere" / "other"
    shutil.copytree(mixed, copy)  # with the times of the files
    options = InputOptions()
    original = parts_of(str(mixed), "in", options)
    copied = parts_of(str(copy), "in", options)
    assert fingerprint_of(copied) == fingerprint_of(original)
    assert read_all(copied, options) == read_all(original, options)


@pytest.mark.parametrize(
    "name",
    ["a.py", "b/empty.txt", "repo/zz.go", "tables/t.jsonl", "repo/LICENSE"],
)
def test_the_fingerprint_changes_with_one_byte(mixed, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(mixed, copy)
    before = fingerprint_of(parts_of(str(copy), "in", InputOptions()))
    assert fingerprint_of(parts_of(str(copy), "in", InputOptions())) == before
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1] + b" ")
    status = os.stat(copy / name)
    # A file system may keep the time in steps in which the test wrote the file twice.
    os.utime(copy / name, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert fingerprint_of(parts_of(str(copy), "in", InputOptions())) != before


def test_the_fingerprint_changes_with_a_name_and_a_repository(mixed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(mixed, copy)
    prints = {fingerprint_of(parts_of(str(copy), "in", InputOptions()))}
    (copy / "a.py").rename(copy / "a2.py")
    prints.add(fingerprint_of(parts_of(str(copy), "in", InputOptions())))
    (copy / "repo/.git/config").write_text('[remote "origin"]\nurl = https://x/y/z\n')
    prints.add(fingerprint_of(parts_of(str(copy), "in", InputOptions())))
    assert len(prints) == 3


@pytest.mark.parametrize("source", files.BUILTINS)
def test_builtin_sources_have_the_ids_and_texts_of_the_corpus(source):
    items = sources.find(source)
    options = InputOptions(part_bytes=2**20)
    results = read_all(parts_of(source, "", options), options)
    assert [record.id for record in results] == [item.id for item in items]
    kept = {record.id: record.text for record in results if isinstance(record, Record)}
    for item in items:
        if item.id in kept:
            assert kept[item.id] == item.read().decode().removeprefix("\ufeff")
    assert len(kept) > 10


def test_builtin_sources_take_another_name():
    results = read_all(parts_of("topics", "talk", InputOptions()), InputOptions())
    assert results[0].id.startswith("talk/") and results[0].source == "talk"


def test_a_text_that_another_machine_lacks():
    part = parts_of("topics", "", InputOptions())[0]
    piece = part.slices[0]._replace(names=files.packed_names(["no such topic"]))
    with pytest.raises(UserError, match="no such topic: install the same Python"):
        list(read_part(part._replace(slices=(piece,)), InputOptions()))


def test_odd_names_hidden_files_and_links(tmp_path, write_files):
    write_files(tmp_path, {".env": "x", ".hidden/a.py": "x", "a.py": "x"})
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"odd\xff\n.py")).write_text("y")
    results = read_all(parts_of(str(tmp_path), "in", InputOptions()), InputOptions())
    assert [record.id for record in results] == ["in/a.py", "in/odd\\udcff\n.py"]
    assert [record.path for record in results] == ["a.py", "odd\\udcff\n.py"]


def test_files_that_change_after_they_were_listed(tmp_path, write_files):
    write_files(tmp_path, {"a.py": "x", "b.py": "x", "c.py": "x", "d.py": "x"})
    parts = parts_of(str(tmp_path), "in", InputOptions())
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "b.py")
    (tmp_path / "c.py").mkdir()
    results = read_all(parts, InputOptions())
    assert [getattr(result, "reason", "") for result in results] == [*["unreadable"] * 3, ""]


def test_one_file_has_the_id_that_it_has_in_its_folder(mixed):
    everything = read_all(parts_of(str(mixed / "tables"), "", InputOptions()), InputOptions())
    alone = read_all(parts_of(str(mixed / "tables/t.parquet"), "", InputOptions()), InputOptions())
    assert alone and set(alone) < set(everything)
    (record,) = read_all(parts_of(str(mixed / "a.py"), "", InputOptions()), InputOptions())
    assert record.id == "corpus/a.py" and record.language == "Python"


def test_many_files_take_little_memory():
    """50 million files in 1 GB of parts: at most 20 bytes for each."""
    collector = files.Collector(Slice(files.FILES, "/x", "in", 0, ""), InputOptions())
    slices = []
    for number in range(200_000):
        name = f"project_{number // 50}/package/module_{number % 50}.py"
        slices += collector.add(name, 1000, "1000:1700000000000000000")
    slices += collector.rest()
    assert sum(len(files.unpacked_names(piece.names)) for piece in slices) == 200_000
    assert len(pickle.dumps(slices)) < 20 * 200_000


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing", "does not exist: name a folder, a file or stdlib, topics, descriptions"),
        ("empty", "holds nothing that can be read"),
        ("archives", "only files of formats that cannot be read"),
        ("archives/a.zip", r"a\.zip cannot be read \(archives\)"),
        ("archives/a.pdf", r"a\.pdf cannot be read \(PDF\)"),
        ("archives/a.tar", r"a\.tar cannot be read \(archives\)"),
        ("archives/a.txt.gz", r"a\.txt\.gz cannot be read \(compressed\)"),
        ("pipe", "not a regular file"),
        ("nothing.parquet", r"nothing\.parquet is truncated or damaged"),
        ("nothing.arrow", r"nothing\.arrow is truncated or damaged"),
        ("pointer.parquet", r"pointer\.parquet is a git-lfs pointer"),
        ("other.jsonl", r"other\.jsonl has no column of a known name that holds text \(content"),
    ],
)
def test_mistakes(tmp_path, write_files, name, message):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    write_files(
        tmp_path,
        {
            "empty/.hidden": "x",
            "archives/a.zip": b"PK",
            "archives/a.pdf": b"%PDF",
            "archives/a.tar": b"tar",
            "archives/a.txt.gz": b"\x1f\x8b",
            "nothing.parquet": b"PAR1",
            "nothing.arrow": b"",
            "pointer.parquet": pointer,
            "other.jsonl": json.dumps({"title": "x", "body": "y"}) + "\n",
        },
    )
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=message) as error:
        parts_of(str(tmp_path / name), "in", InputOptions())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "arrow"])
def test_a_misspelt_column(tmp_path, write_table, stack_row, kind):
    path = write_table(tmp_path / f"t.{kind}", [stack_row(1)])
    with pytest.raises(UserError) as error:
        parts_of(str(path), "in", InputOptions(text_column="contnt"))
    message = str(error.value)
    assert message.startswith(f"{path} has no column 'contnt' (text_column; did you mean content?)")
    assert "max_stars_repo_path" in message


def test_a_column_that_is_not_text(tmp_path, write_table, stack_row):
    path = write_table(tmp_path / "t.parquet", [stack_row(1)])
    with pytest.raises(UserError, match=r"'max_stars_count' of .* holds int64"):
        parts_of(str(path), "in", InputOptions(text_column="max_stars_count"))


def test_options_are_checked():
    with pytest.raises(FieldError, match="part_bytes is 0: it must be at least 1"):
        InputOptions(part_bytes=0)
    with pytest.raises(FieldError, match="notebooks is 'html': it must be one of script"):
        InputOptions(notebooks="html")


@pytest.mark.parametrize("source", ["bogus://bucket/folder", "", "a\0b", "/dev/null", "/"])
def test_one_line_for_an_input_that_is_no_folder(source):
    message = r"unknown scheme 'bogus'|not valid|not a regular file|is the complete file system"
    with pytest.raises(UserError, match=message) as error:
        parts_of(source, "", InputOptions())
    assert "\n" not in str(error.value)


def test_private_and_broken_files(tmp_path, monkeypatch, write_files):
    """A private file is dropped; an error of the disk is none of the corpus."""
    write_files(tmp_path, {"a.py": "x", "b.py": "y"})
    parts = parts_of(str(tmp_path), "in", InputOptions())
    opened = files.open_file

    def fail(path):
        if path.endswith("a.py"):
            raise error
        return opened(path)

    monkeypatch.setattr(files, "open_file", fail)
    error = PermissionError(errno.EACCES, "Permission denied")
    results = read_all(parts, InputOptions())
    assert results[0] == Dropped("in/a.py", "unreadable") and results[1].id == "in/b.py"
    error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(UserError, match=r"cannot read .*a\.py: Input/output error"):
        read_all(parts, InputOptions())


def names_in(parts):
    return [name for part in parts for piece in part.slices for name in files.names_of(piece)]


def test_the_sample_of_files_is_stable(tmp_path, write_files):
    write_files(tmp_path / "a" / "in", {f"{number}.py": "x" for number in range(100)})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    small = InputOptions(part_bytes=10)
    parts = parts_of(str(tmp_path / "a" / "in"), "", InputOptions())
    ten, eleven = sampled(parts, 10), sampled(parts, 11)
    assert len(names_in(ten)) == 10 and set(names_in(ten)) < set(names_in(eleven))
    assert names_in(ten) != names_in(parts)[:10] and names_in(ten) == sorted(names_in(ten))
    for options in (InputOptions(), small):
        elsewhere = parts_of(str(tmp_path / "b" / "in"), "", options)
        assert names_in(sampled(elsewhere, 10)) == names_in(ten)
        numbers = [part.number for part in sampled(elsewhere, 10)]
        assert numbers == list(range(len(numbers)))
    assert sampled(parts, 0) == sampled(parts, 100) == parts


def test_the_fingerprint_of_a_sample_depends_on_its_files(mixed):
    """It names the cache of prepared documents."""
    for part_bytes in (500, 2**26):
        parts = parts_of(str(mixed), "in", InputOptions(part_bytes=part_bytes))
        count = len(names_in(parts))
        samples = [sampled(parts, number) for number in range(1, count + 2)]
        fingerprints = [fingerprint_of(sample) for sample in samples]
        assert len(set(fingerprints)) == count > 5
        # A sample of all files is the input itself.
        assert fingerprints[-1] == fingerprints[-2] == fingerprint_of(parts)
        assert [fingerprint_of(sampled(parts, number)) for number in (1, 2)] == fingerprints[:2]


def test_files_can_come_in_the_order_of_their_ids(tmp_path, write_files, write_table, stack_row):
    write_files(tmp_path, {"b/c.py": "x", "b/a/d.py": "x", "b-c.py": "x", "z.py": "x"})
    (tmp_path / os.fsdecode(b"odd\xff.py")).write_text("y")
    write_table(tmp_path / "zz" / "t.jsonl", [stack_row(1)])
    parts = parts_of(str(tmp_path), "in", InputOptions())
    assert names_in(parts) == ["b-c.py", os.fsdecode(b"odd\xff.py"), "z.py", "b/c.py", "b/a/d.py"]
    in_order = sorted_by_name(parts)
    ids = [record.id for record in read_all(in_order, InputOptions()) if "#" not in record.id]
    assert ids == sorted(ids) and len(ids) == 5
    assert len(read_all(in_order, InputOptions())) == 6


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"])
def test_a_stray_table_without_text_is_dropped(tmp_path, write_files, write_table, kind):
    folder = tmp_path / "in"
    write_files(folder, {"a.py": "x = 1\n", "z.py": "x = 2\n"})
    path = write_table(folder / f"stray.{kind}", [{"size": 1, "title": "x"}] * 3)
    write_table(folder / f"text.{kind}", [{"content": "y = 1\n"}])
    results = read_all(parts_of(str(folder), "", InputOptions()), InputOptions())
    assert [result.id for result in results] == [
        "in/a.py",
        f"in/stray.{kind}",
        f"in/text.{kind}#0",
        "in/z.py",
    ]
    assert results[1] == Dropped(f"in/stray.{kind}", "no_text_column")
    message = rf"stray\.{kind} has no column of a known name .* are size, title; name one as text"
    with pytest.raises(UserError, match=message):
        parts_of(str(path), "", InputOptions())
    with pytest.raises(UserError, match=rf"stray\.{kind} has no column 'content'"):
        parts_of(str(folder), "", InputOptions(text_column="content"))
    for name in ("a.py", "z.py", f"text.{kind}"):
        (folder / name).unlink()
    (folder / "archive.zip").write_bytes(b"PK")
    # Nothing else can be read: probably these are the documents.
    with pytest.raises(UserError, match=message):
        parts_of(str(folder), "", InputOptions())


def test_a_stray_table_whose_text_is_of_numbers(tmp_path, write_files, write_table):
    write_files(tmp_path, {"a.py": "x = 1\n"})
    write_table(tmp_path / "text.parquet", [{"text": 1}])
    results = read_all(parts_of(str(tmp_path), "in", InputOptions()), InputOptions())
    assert results[1] == Dropped("in/text.parquet", "no_text_column")
    with pytest.raises(UserError, match=r"column 'text' of .* holds int64: name a column of text"):
        parts_of(str(tmp_path), "in", InputOptions(text_column="text"))


@pytest.mark.parametrize("name", ["bad.parquet", "bad.arrow", "bad.jsonl.gz", "bad.jsonl.zst"])
def test_a_stray_table_that_is_damaged_is_an_error(tmp_path, write_files, name):
    write_files(tmp_path, {"a.py": "x = 1\n", name: b"PAR1 nothing more"})
    with pytest.raises(UserError, match=rf"{re.escape(name)} is truncated or damaged"):
        read_all(parts_of(str(tmp_path), "in", InputOptions()), InputOptions())
