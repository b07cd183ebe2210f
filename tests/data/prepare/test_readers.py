"""The readers: layouts of tables, damaged files, checkouts, licenses, notebooks, conversations."""

import json
import os

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from reading import TABLES, read_all, reasons

from codellama_jax.data.prepare.inputs import InputOptions, parts_of, read_part
from codellama_jax.data.prepare.parts import DOCUMENTS, write_rows
from codellama_jax.data.prepare.readers import (
    arrow,
    checkouts,
    json_lines,
)
from codellama_jax.data.prepare.readers.base import text_of
from codellama_jax.data.prepare.readers.licenses import combined, license_of
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.errors import UserError

COMPRESSED = ("jsonl.gz", "jsonl.zst")


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"x = 1\r\n", "x = 1\r\n"),
        (b"\xef\xbb\xbfx = 1\n", "x = 1\n"),
        ("é\u2028".encode(), "é\u2028"),
        (b"", "empty"),
        (b"\xef\xbb\xbf \n", "empty"),
        (b"\xff\xfea\0", "binary"),
        (b"\x89PNG\0\xff", "binary"),
        (b"caf\xe9", "not_utf8"),
        (b"\xed\xa0\x80", "not_utf8"),
        (b"x" * 101, "too_large"),
        ("\ud800", "not_utf8"),
        ("a\0b", "binary"),
        ("\ufeffx", "x"),
        ("é" * 51, "too_large"),
    ],
)
def test_texts(data, expected):
    result = text_of(data, "id", InputOptions(max_file_bytes=100))
    assert (result.reason if isinstance(result, Dropped) else result) == expected


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("kind", TABLES)
def test_the_layout_of_the_stack(tmp_path, write_table, stack_row, kind):
    unknown = stack_row(1, max_stars_count=None, max_stars_repo_licenses=[], lang=None)
    write_table(tmp_path / f"t.{kind}", [stack_row(0), unknown])
    first, second = read_all(tmp_path)
    assert first == Record(
        id=f"in/t.{kind}#0",
        text="x = 0\n",
        path="src/file_0.py",
        language="Python",
        repository="owner/name",
        license="apache-2.0 and mit",
        stars=0,
        source="in",
    )
    assert (second.stars, second.license, second.language) == (-1, "", "Python")


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    "row",
    [
        # StarCoder's data.
        {"max_stars_repo_path": "a.js", "max_stars_repo_name": "o/n", "max_stars_count": 3,
         "id": "7", "content": "f()\n"},
        # The Stack v2 with contents.
        {"blob_id": "0", "path": "/a.js", "repo_name": "o/n", "detected_licenses": ["MIT"],
         "star_events_count": 3, "language": "JavaScript", "content": "f()\n"},
        # GitHub Code.
        {"code": "f()\n", "repo_name": "o/n", "path": "a.js", "language": "JavaScript",
         "license": "mit", "size": 4},
        # The Stack's samples.
        {"content": "f()\n", "licenses": ["MIT"], "repository_name": "o/n", "path": "a.js",
         "lang": "JavaScript"},
    ],
)  # fmt: skip
def test_known_layouts(tmp_path, write_table, kind, row):
    write_table(tmp_path / f"t.{kind}", [row])
    (record,) = read_all(tmp_path)
    assert (record.text, record.language, record.repository) == ("f()\n", "JavaScript", "o/n")
    assert record.path.endswith("a.js")
    assert record.license == ("" if "id" in row else "mit")
    assert record.stars == (3 if "id" in row or "blob_id" in row else -1)


@pytest.mark.parametrize("kind", TABLES)
def test_columns_by_option(tmp_path, write_table, kind):
    row = {"content": "no", "body": "fn x() {}", "where": "a.rs", "who": "o/n", "lic": "MIT",
           "likes": "12", "kind": "rust"}  # fmt: skip
    write_table(tmp_path / f"t.{kind}", [row])
    options = InputOptions(
        text_column="body",
        path_column="where",
        repository_column="who",
        license_column="lic",
        stars_column="likes",
        language_column="kind",
    )
    (record,) = read_all(tmp_path, options)
    assert record[1:-1] == ("fn x() {}", "a.rs", "Rust", "o/n", "mit", 12)


@pytest.mark.parametrize("kind", TABLES)
def test_rows_that_are_dropped(tmp_path, write_table, stack_row, kind):
    texts = ["kept", "", "a\0b", None, "x" * 200, "kept too"]
    rows = [stack_row(number, content=text) for number, text in enumerate(texts)]
    write_table(tmp_path / f"t.{kind}", rows)
    results = read_all(tmp_path, InputOptions(max_file_bytes=100))
    assert reasons(results) == ["", "empty", "binary", "empty", "too_large", ""]
    assert len({result.id for result in results}) == len(texts)


def test_strings_that_are_not_utf8(tmp_path):
    kept, damaged = b"x = 1", b"caf\xe9"
    binary = pa.array([kept, damaged], pa.binary())
    string = pa.StringArray.from_buffers(2, *binary.buffers()[1:])  # as careless writers do
    for name, column in {"binary": binary, "string": string}.items():
        pq.write_table(pa.table({"content": column, "path": column}), tmp_path / f"{name}.parquet")
    assert reasons(read_all(tmp_path)) == ["", "not_utf8"] * 2


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_other_types_of_text(tmp_path, kind):
    column = pa.array(["x = 1", "y = 2"]).cast(kind)
    pq.write_table(pa.table({"content": column}), tmp_path / "t.parquet")
    assert [record.text for record in read_all(tmp_path)] == ["x = 1", "y = 2"]


def test_damaged_lines_of_json(tmp_path, write_files):
    lines = [
        b'{"text": "first", "path": "a.py"}',
        b'{"text": "cut',
        b"",
        b"[1, 2]",
        b'{"title": "no text"}',
        b'{"text": 7}',
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b"x" * (2**20 + 700),
        b'\t{"text": "last", "path": null}\r',
    ]
    write_files(tmp_path, {"t.jsonl": b"\n".join(lines)})
    results = read_all(tmp_path, InputOptions(max_file_bytes=100))
    damaged = ["damaged"] * 4
    assert reasons(results) == ["", *damaged, "damaged", "not_utf8", "damaged", "too_large", ""]
    assert [results[0].text, results[-1].text] == ["first", "last"]


def test_stars_that_no_repository_has_are_unknown(tmp_path, write_files):
    values = ("12", "0", "-3", "1e30", str(10**20), "NaN", "true", '"many"')
    lines = [f'{{"text": "x", "stars": {value}}}' for value in values]
    write_files(tmp_path, {"t.jsonl": "\n".join(lines)})
    records = read_all(tmp_path)
    assert [record.stars for record in records] == [12, 0, -1, -1, -1, -1, 1, -1]
    rows = [record._asdict() | {"digest": bytes(16), "bands": b""} for record in records]
    write_rows(tmp_path / "t.parquet", DOCUMENTS, rows, sized="text")


@pytest.mark.parametrize("name", ["T.JSONL", "t.jsonl.GZ", "t.JSONL.Zst"])
def test_endings_in_capitals(tmp_path, write_table, stack_row, name):
    write_table(tmp_path / name.lower(), [stack_row(0)])
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert [record.text for record in read_all(tmp_path)] == ["x = 0\n"]


@hypothesis.given(
    texts=st.lists(st.text(max_size=30), max_size=20),
    part_bytes=st.integers(1, 200),
    ends=st.booleans(),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_ranges_of_json_lines_hold_every_line_once(tmp_path_factory, texts, part_bytes, ends):
    lines = [json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0) for text in texts]
    path = tmp_path_factory.mktemp("lines") / "t.jsonl"
    path.write_text("\n".join(['{"text": "one"}', *lines]) + "\n" * ends, encoding="utf-8")
    results = read_all(path, InputOptions(part_bytes=part_bytes))
    assert results == read_all(path)
    assert len(results) == len(texts) + 1
    for text, result in zip(texts, results[1:]):
        assert isinstance(result, Dropped) or result.text == text.removeprefix("\ufeff")


@pytest.mark.parametrize("kind", COMPRESSED)
def test_truncated_compressed_lines(tmp_path, write_table, stack_row, kind):
    rows = [stack_row(number, content=os.urandom(200).hex()) for number in range(50)]
    path = write_table(tmp_path / f"t.{kind}", rows)
    parts = parts_of(str(path), "in", InputOptions())
    data = path.read_bytes()
    for length in (len(data) - 1, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=rf"t\.{kind} is truncated or damaged"):
            list(read_part(parts[0], InputOptions()))
    path.write_bytes(data[: len(data) // 2] + b"\0" * 100 + data[len(data) // 2 + 100 :])
    with pytest.raises(UserError, match="truncated or damaged"):
        list(read_part(parts[0], InputOptions()))
    path.write_bytes(data * 2)  # several streams, as pigz and zstd write them, are one file
    assert len(list(read_part(parts[0], InputOptions()))) == 100
    path.write_bytes(b"not compressed at all")
    with pytest.raises(UserError, match="truncated or damaged"):
        parts_of(str(path), "in", InputOptions())


class Remote:
    """A file of an object store that can only read and seek."""

    def __init__(self, path):
        self._file = open(path, "rb")  # noqa: SIM115
        self.closed = False

    def read(self, size=-1):
        return self._file.read(size)

    def seek(self, position, whence=0):
        return self._file.seek(position, whence)

    def tell(self):
        return self._file.tell()

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


@pytest.mark.parametrize("kind", TABLES)
def test_tables_in_an_object_store(tmp_path, write_table, stack_row, monkeypatch, kind):
    write_table(tmp_path / f"t.{kind}", [stack_row(number) for number in range(9)])
    options = InputOptions(part_bytes=500)
    parts = parts_of(str(tmp_path), "in", options)
    expected = read_all(tmp_path, options)
    for module in (json_lines, arrow):
        monkeypatch.setattr(module, "open_file", Remote)
        monkeypatch.setattr(module, "is_bucket", lambda path: True)
    results = []
    for part in parts:
        results += read_part(part, options)
    assert results == expected and len(results) == 9


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_damaged_tables(tmp_path, write_table, stack_row, kind):
    rows = [stack_row(number, content=os.urandom(2000).hex()) for number in range(20)]
    path = write_table(tmp_path / f"t.{kind}", rows)
    parts = parts_of(str(path), "in", InputOptions())
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"\xff" * (len(data) - 100) + data[-100:], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"t\.{kind} is truncated or damaged"):
            list(read_part(parts[0], InputOptions()))
    path.unlink()
    with pytest.raises(UserError, match=rf"t\.{kind} "):
        list(read_part(parts[0], InputOptions()))


def test_row_groups_are_divided(tmp_path, write_table, stack_row):
    rows = [stack_row(number, content=f"{number}" * 1000) for number in range(10)]
    write_table(tmp_path / "t.parquet", rows)
    options = InputOptions(part_bytes=5000)
    parts = parts_of(str(tmp_path), "in", options)
    assert len(parts) > 2
    ids = []
    for part in parts:
        ids += [record.id for record in read_part(part, options)]
    assert ids == [f"in/t.parquet#{row}" for row in range(10)]


def test_arrow_files_with_an_index(tmp_path, stack_row):
    table = pa.Table.from_pylist([stack_row(0), stack_row(1)])
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as file:
        file.write_table(table)
    assert [record.text for record in read_all(tmp_path)] == ["x = 0\n", "x = 1\n"]


@pytest.mark.parametrize("files", [5, {"a": 1}, ["t.arrow"], [None], None])
def test_the_state_of_another_program_lists_no_tables(tmp_path, write_table, stack_row, files):
    write_table(tmp_path / "t.arrow", [stack_row(0)])
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    assert [record.text for record in read_all(tmp_path)] == ["x = 0\n"]


# ---------------------------------------------------------------- checkouts


@pytest.mark.parametrize("version", ["2", "4"])
def test_only_tracked_files_of_a_checkout(tmp_path, write_files, git, version):
    folder = tmp_path / "name"
    tracked = {f"src/deep/module_{i}.py": f"x = {i}\n" for i in range(30)}
    write_files(folder, {"COPYING": "GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June", **tracked})
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "update-index", "--index-version", version)
    git(folder, "remote", "add", "origin", "git@example.com:own/name.git")
    git(folder, "add", ".")
    write_files(folder, {"untracked.py": "x", "src/build/out.py": "x"})
    records = {record.path: record for record in read_all(folder)}
    assert set(records) == {"COPYING", *tracked}
    assert {record.repository for record in records.values()} == {"own/name"}
    assert {record.license for record in records.values()} == {"gpl-3.0"}
    # A folder of checkouts gives the same records under longer ids.
    above = {record.path: record for record in read_all(tmp_path)}
    assert above["COPYING"].id == "in/name/COPYING" and set(above) == set(records)
    assert above["COPYING"].repository == "own/name"


def test_a_second_working_tree_knows_its_origin(tmp_path, write_files, git):
    first, second = tmp_path / "first", tmp_path / "second"
    write_files(first, {"a.py": "x"})
    git(tmp_path, "init", "-q", str(first))
    git(first, "remote", "add", "origin", "https://example.com/own/name")
    git(first, "add", ".")
    git(first, "-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "x")
    git(first, "worktree", "add", "-q", str(second))
    write_files(second, {"untracked.py": "x"})
    (record,) = read_all(second)
    assert record.path == "a.py" and record.repository == "own/name"


def test_a_checkout_whose_index_cannot_be_read(tmp_path, write_files):
    write_files(tmp_path, {".git/index": b"DIRC\0\0\0\2\0\0\0\7short", "a.py": "x", "b.py": "y"})
    assert [record.path for record in read_all(tmp_path)] == ["a.py", "b.py"]


def test_a_data_set_of_hugging_face_is_no_program(tmp_path, write_files, write_table, stack_row):
    url = "https://huggingface.co/datasets/bigcode/the-stack-smol"
    write_files(tmp_path, {".git/config": f'[remote "origin"]\n\turl = {url}\n'})
    write_table(tmp_path / "data/t.parquet", [stack_row(3)])
    (record,) = read_all(tmp_path)
    assert record.text == "x = 3\n" and record.repository == "owner/name"


@pytest.mark.parametrize(
    "url, repository",
    [
        ("https://github.com/octo/cat", "octo/cat"),
        ("https://user:secret@github.com/octo/cat.git", "octo/cat"),
        ("git@github.com:octo/cat.git", "octo/cat"),
        ("ssh://git@host:22/group/octo/cat/", "octo/cat"),
        ("/srv/git/cat.git", "git/cat"),
        ("", "folder"),
    ],
)
def test_the_name_of_a_repository(tmp_path, write_files, url, repository):
    config = f'[core]\n\tbare = false\n\t\tx\n[remote "origin"]\n\tfetch = +a:b\n\turl = {url}\n'
    write_files(tmp_path / "folder", {".git/config": config})
    assert checkouts.checkout_of(epath.Path(tmp_path / "folder")).repository == repository


def test_damaged_git_files(tmp_path, write_files):
    write_files(tmp_path, {".git/config": b"\xff[[[\n", "a.py": "x"})
    (record,) = read_all(tmp_path)
    assert record.repository == tmp_path.name


# ---------------------------------------------------------------- licenses

BSD = "Redistribution and use in source and binary forms, with or without\nmodification, are ... "
LICENSES = {
    "mit": "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a"
    " copy\nof this software and associated documentation files (the 'Software')",
    "apache-2.0": "  Apache License\n    Version 2.0, January 2004\n",
    "bsd-2-clause": BSD,
    "bsd-3-clause": BSD + "Neither the name of X may be used to endorse or promote products",
    "bsd-4-clause": BSD + "3. All advertising materials mentioning features",
    "isc": "Permission to use, copy, modify, and/or distribute this software for any\npurpose with"
    " or without fee is hereby granted, provided that the above copyright notice",
    "0bsd": "Permission to use, copy, modify, and/or distribute this software for any\npurpose with"
    " or without fee is hereby granted.",
    "mpl-2.0": "Mozilla Public License Version 2.0\n=====",
    "gpl-2.0": "GNU GENERAL PUBLIC LICENSE\n   Version 2, June 1991",
    "gpl-3.0": "GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007 ... GNU Affero General Public"
    " License version 3",
    "lgpl-2.1": "GNU LESSER GENERAL PUBLIC LICENSE\n Version 2.1, February 1999",
    "lgpl-3.0": "GNU LESSER GENERAL PUBLIC LICENSE\n Version 3 ... GNU General Public License v3",
    "agpl-3.0": "GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007",
    "unlicense": "This is free and unencumbered software released into the public domain.",
    "cc0-1.0": "Creative Commons Legal Code\n\nCC0 1.0 Universal",
    "epl-2.0": "Eclipse Public License - v 2.0",
    "bsl-1.0": "Boost Software License - Version 1.0 - August 17th, 2003",
    "eupl-1.2": "# SPDX-License-Identifier: EUPL-1.2\n",
    "": "All rights reserved.",
}


@pytest.mark.parametrize("name, text", LICENSES.items())
def test_licenses(name, text):
    assert license_of(text) == name


def test_several_licenses():
    assert combined(["mit", "", "apache-2.0", "mit"]) == "apache-2.0 and mit"
    assert combined(["gpl-3.0", "lgpl-3.0"]) == "lgpl-3.0"
