"""One writer per folder, in real processes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from etils import epath
from paths import ROOT

from codellama_jax.errors import UserError
from codellama_jax.system import locks

HOLDER = """
import sys, time
from etils import epath
from codellama_jax.errors import UserError
from codellama_jax.system.locks import sole_writer
try:
    with sole_writer(epath.Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
except UserError as error:
    print(error, flush=True)
"""


def start_holder(folder: Path) -> tuple[subprocess.Popen, str]:
    """Starts a process that takes the lock and keeps it. Returns it and the line it prints."""
    argv = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return holder, holder.stdout.readline()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    folder = epath.Path(tmp_path) / "run"
    holder, line = start_holder(folder)
    try:
        assert line == "held\n"
        with pytest.raises(UserError) as refused, locks.sole_writer(folder):
            pass
        assert f"{folder} is being written by process {holder.pid} on " in str(refused.value)
        assert " since 20" in str(refused.value)
        with pytest.raises(UserError, match="is being written by"):
            locks.check_free(folder)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (folder / locks.NAME).exists()  # which nobody holds
    locks.check_free(folder)
    with locks.sole_writer(folder):
        holder, line = start_holder(folder)
        holder.wait()
        assert f"process {os.getpid()} on " in line
    assert not (folder / locks.NAME).exists()


TWENTY_TIMES = """
import os, signal, sys, time
from etils import epath
from codellama_jax.errors import UserError
from codellama_jax.system.locks import sole_writer
folder = epath.Path(sys.argv[1])

def start():
    # Returns a new process and "writer", or the line that refuses it.
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            with sole_writer(folder):
                os.write(writer, b"writer")
                time.sleep(60)
        except UserError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 1000).decode()
    os.close(reader)
    return process, text

for _ in range(20):
    first, text = start()
    assert text == "writer", text
    second, text = start()
    assert f"is being written by process {first} on " in text, text
    os.waitpid(second, 0)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
"""


def test_two_starts_twenty_times_with_the_first_killed(tmp_path):
    argv = [sys.executable, "-c", TWENTY_TIMES, str(tmp_path / "run")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_never_two_writers_and_never_a_stale_lock(tmp_path):
    """Many threads take, release and delete the same lock file; flock distinguishes the files."""
    folder = epath.Path(tmp_path) / "run"
    inside, most, taken = [], [], []

    def write() -> None:
        for _ in range(200):
            try:
                with locks.sole_writer(folder):
                    inside.append(1)
                    most.append(len(inside))
                    taken.append(1)
                    inside.pop()
            except UserError:
                pass

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(taken) >= 20
    with locks.sole_writer(folder):
        pass


def test_a_program_that_is_started_does_not_keep_the_lock(tmp_path):
    folder = epath.Path(tmp_path)
    with locks.sole_writer(folder):
        child = subprocess.Popen(["sleep", "30"])
    try:
        with locks.sole_writer(folder):
            pass
    finally:
        child.kill()
        child.wait()


def test_the_lock_of_a_renamed_folder_leaves_that_of_the_new_one(tmp_path):
    folder = epath.Path(tmp_path) / "run"
    with locks.sole_writer(folder):
        folder.rename(tmp_path / "run.1")
        folder.mkdir()
        (folder / locks.NAME).touch()
    assert (folder / locks.NAME).exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    folder = epath.Path(tmp_path) / "file" / "run"
    with pytest.raises(UserError, match=f"cannot lock {folder}"), locks.sole_writer(folder):
        pass


def test_a_folder_below_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(UserError, match=f"{path}: {tmp_path / 'file'} is not a folder"):
            locks.check_free(epath.Path(path))
    locks.check_free(epath.Path(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


def test_a_bucket_is_said_to_have_no_locks(capsys):
    with locks.sole_writer(epath.Path("gs://bucket/run")):
        pass
    error = capsys.readouterr().err
    assert "warning: gs://bucket/run cannot be locked (an object store has no locks)" in error
    assert error.count("\n") == 1
