"""Paths of users, checked reads, and writes that are complete or absent."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import types

import hypothesis.strategies as st
import pytest
from etils import epath
from hypothesis import given
from paths import ROOT

from codellama_jax.errors import UserError
from codellama_jax.system import files

DAMAGED = {"empty": b"", "nul": b"\0" * 300, "half": b'{"a": [1, 2', "deep": b"[" * 100_000}


def test_a_path_of_the_user_is_absolute_and_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.user_path("~/runs/x") == epath.Path(tmp_path / "home/runs/x")
    assert files.user_path("a/../b") == epath.Path(tmp_path / "b")
    monkeypatch.setattr(files, "BUCKET_PACKAGES", {})  # gcsfs is in the extra `tpu` only
    monkeypatch.setattr(files, "epath", types.SimpleNamespace(Path=str))
    assert files.user_path("gs://bucket/~/x") == "gs://bucket/~/x"


@pytest.mark.parametrize(
    "path, message",
    [("", "not valid"), ("a\0b", "not valid"), ("ftp7://x", "unknown scheme 'ftp7'")],
)
def test_a_path_that_is_none_is_one_line(path, message):
    with pytest.raises(UserError, match=message):
        files.user_path(path)


def test_a_written_file_follows_the_umask_and_leaves_nothing_beside_it(tmp_path):
    before = os.umask(0o022)
    try:
        files.write_file(tmp_path / "new" / "file", "text")
        files.write_json(tmp_path / "new" / "file", {"é": 1})
    finally:
        os.umask(before)
    path = tmp_path / "new" / "file"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert json.loads(path.read_text()) == {"é": 1}
    assert list(path.parent.iterdir()) == [path]


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    files.write_file(tmp_path / ("é" * 127), b"x")
    assert (tmp_path / ("é" * 127)).read_bytes() == b"x"


def test_a_write_that_fails_names_the_path_and_keeps_the_old_file(tmp_path, monkeypatch):
    files.write_file(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"cannot write {path}"):
            files.write_file(path, "new")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="file: No space left on device"):
        files.write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


WRITER = """
import sys
from codellama_jax.system.files import write_file
print("begun", flush=True)
while True:
    for letter in "ab":
        write_file(sys.argv[1], letter * 100_000)
"""


def test_a_kill_while_writing_leaves_a_complete_file(tmp_path):
    path = tmp_path / "file"
    argv = [sys.executable, "-c", WRITER, str(path)]
    for _ in range(3):
        writer = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
        writer.stdout.readline()
        while not path.exists():
            pass
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert path.read_text() in ("a" * 100_000, "b" * 100_000)


def test_many_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "file"
    texts = [str(i) * 50_000 for i in range(4)]
    threads = [threading.Thread(target=files.write_file, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_regular_file_is_one_line_and_never_waits(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "fifo", "is not a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "nothing", "there is no file"),
        ("/dev/zero", "is not a regular file"),
        (tmp_path / ("x" * 5000), "File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            files.read_file(path)


def test_the_complete_file_system_is_no_folder_of_data(tmp_path):
    (tmp_path / "link").symlink_to("/")
    for path in ("/", "/tmp/..", tmp_path / "link"):
        with pytest.raises(UserError, match="the corpus is the complete file system: name a"):
            files.check_not_root(path, "the corpus")
    files.check_not_root(tmp_path, "the corpus")
    files.check_not_root("gs://bucket", "the corpus")


def test_a_pipe_or_device_in_a_folder_is_named(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("x")
    (tmp_path / "link").symlink_to("inner")
    (tmp_path / "gone").symlink_to("nowhere")
    files.check_no_pipes(tmp_path)
    files.check_no_pipes(tmp_path / "missing")
    for name, target in (("a", None), ("b", "/dev/zero")):
        path = tmp_path / "inner" / name
        path.symlink_to(target) if target else os.mkfifo(path)
        with pytest.raises(UserError, match=f"{path} is not a regular file: remove it"):
            files.check_no_pipes(tmp_path)
        path.unlink()


@pytest.mark.parametrize(
    "data, message",
    [
        (DAMAGED["empty"], "is empty"),
        (DAMAGED["nul"], "is empty"),
        (DAMAGED["half"], "is not valid JSON"),
        (DAMAGED["deep"], "nested too deeply"),
        (b"\xff{}", "is not utf-8 text: byte 0 is 0xff"),
        (b"\xff\xfe{", "is not utf-16 text"),
        (b"<html>", "is an HTML or XML page"),
        (files.GIT_LFS_POINTER + b"v1\n", "run `git lfs pull`"),
    ],
)
def test_what_is_no_json_says_what_it_is(tmp_path, data, message):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"x.json .*{message}"):
        files.read_json(path)
    assert files.read_state(path) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_in_the_encodings_that_editors_write(tmp_path, encoding):
    path = tmp_path / "x.json"
    path.write_bytes('{\r\n"é": "ß"}\r\n'.encode(encoding))
    assert files.read_json(path) == files.read_state(path) == {"é": "ß"}


def test_a_state_that_is_no_object_counts_as_damaged(tmp_path):
    assert files.read_state(tmp_path / "missing.json") is None
    for text in ("[]", "5", "null", '"text"'):
        (tmp_path / "x.json").write_text(text)
        assert files.read_state(tmp_path / "x.json") is None
    assert files.read_state(tmp_path) is None


@given(st.binary())
def test_any_bytes_are_a_value_or_one_line(data):
    try:
        files.parse_json(data, "x.json")
    except UserError as error:
        assert "x.json" in str(error)


def test_a_file_is_deleted_and_a_folder_is_one_line(tmp_path):
    (tmp_path / "x").touch()
    for _ in range(2):
        files.delete_file(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="cannot delete"):
        files.delete_file(tmp_path)
