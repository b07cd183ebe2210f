"""Inputs of every format, documents in part files, and pipelines without Beam."""

import gzip
import hashlib
import json
import random
import shutil
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from codellama_jax.data.prepare import parts
from codellama_jax.data.prepare.duplicates import minhash, tables


def write_table(path, rows, rows_per_group=2):
    """Writes rows in the format that the end of the path names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines, mtime=0))
    elif path.name.endswith(".zst"):
        path.write_bytes(zstandard.compress(lines))
    elif path.name.endswith(".jsonl"):
        path.write_bytes(lines)
    elif path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_per_group)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table, max_chunksize=rows_per_group)
    return path


def write_files(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def run_git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture(name="write_table", scope="session")
def write_table_fixture():
    return write_table


@pytest.fixture(name="write_files", scope="session")
def write_files_fixture():
    return write_files


@pytest.fixture(scope="session")
def git():
    if not shutil.which("git"):
        pytest.skip("needs git")
    return run_git


def stack_row(number, **changed):
    """Returns a row in the layout of The Stack."""
    return {
        "hexsha": f"{number:040x}",
        "ext": "py",
        "lang": "Python",
        "max_stars_repo_path": f"src/file_{number}.py",
        "max_stars_repo_name": "owner/name",
        "max_stars_repo_licenses": ["MIT", "Apache-2.0"],
        "max_stars_count": number,
        "content": f"x = {number}\n",
        **changed,
    }


@pytest.fixture(name="stack_row", scope="session")
def stack_row_fixture():
    return stack_row


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """A folder with files, tables of all formats, a data set and two checkouts."""
    folder = tmp_path_factory.mktemp("mixed") / "corpus"
    write_files(
        folder,
        {
            "a.py": "print('a')\n",
            "b/long.txt": "line\n" * 100,
            "b/latin.txt": b"\xe9",
            "b/empty.txt": " \n",
            "repo/.git/config": '[remote "origin"]\n\turl = https://github.com/octo/cat.git\n',
            "repo/LICENSE": "Permission is hereby granted, free of charge, to any person obtaining"
            " a copy of this software and associated documentation files",
            "repo/src/main.go": "package main\n",
            "repo/data.jsonl": '{"not": "a document"}\n',
            "repo/third_party/inner/.git": "gitdir: ../../.git/modules/inner\n",
            "repo/third_party/inner/x.rs": "fn x() {}\n",
            "repo/zz.go": "package zz\n",
            "z.md": "# z\n",
        },
    )
    for kind in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet"):
        rows = [stack_row(number) for number in range(5)]
        write_table(folder / "tables" / f"t.{kind}", rows)
    saved = folder / "saved" / "train"
    write_table(saved / "data-00000-of-00001.arrow", [stack_row(number) for number in range(5)])
    write_table(saved / "cache-123.arrow", [stack_row(9)])
    files = [{"filename": "data-00000-of-00001.arrow"}]
    write_files(
        folder / "saved",
        {
            "dataset_dict.json": json.dumps({"splits": ["train"]}),
            "train/state.json": json.dumps({"_data_files": files}),
            "train/dataset_info.json": "{}",
        },
    )
    return folder


@pytest.fixture
def local_shuffle(monkeypatch):
    """Replaces the pipelines of tables by loops; values arrive in an order drawn from the seed."""
    generator = random.Random(0)

    def shuffle(runner, items, *steps):
        values = list(items)
        for number, step in enumerate(steps):
            if number:
                groups = {}
                for key, value in values:
                    groups.setdefault(key, []).append(value)
                values = list(groups.items())
            generator.shuffle(values)
            values = [result for value in values for result in step(value)]

    monkeypatch.setattr(tables, "shuffle", shuffle)
    return generator


@pytest.fixture
def write_documents(tmp_path):
    """A function that writes (text, language, stars) to part files and returns their paths."""

    def write(documents, params, per_part=4, name="documents"):
        paths = []
        for number, start in enumerate(range(0, len(documents), per_part)):
            rows = []
            for index, (text, language, stars) in enumerate(documents[start : start + per_part]):
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                row = {"id": f"files/{start + index}", "text": text, "language": language}
                bands = minhash.band_hashes(text, params)
                rows.append(row | {"stars": stars, "digest": digest, "bands": bands})
            paths.append(tmp_path / name / parts.part_name(number))
            parts.write_rows(paths[-1], parts.DOCUMENTS, rows, sized="text")
        return paths

    return write
