"""Runs one input and judges the outcome.

An input works or ends as a user's mistake does: exit code 2 after one line `error: ...` on stderr.
A fault is any other exception or exit code, a traceback on stderr, a line that is empty or longer
than LONGEST, and an input that takes longer than LIMIT seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import faulthandler
import functools
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from codellama_jax.command_line import run_command

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60.0  # seconds of an input
END_SECONDS = 30.0  # that a forked process gets to end, beside LIMIT
LONGEST = 2_000  # characters of an error line
# Makes an input from random numbers, in an empty folder, and returns what a command does with it.
MakeInput = Callable[[Random, Path], Callable[[], object]]

for _folder in ("", "tests/benchmarks", "tests/weights", "tests"):
    if str(ROOT / _folder) not in sys.path:
        sys.path.append(str(ROOT / _folder))  # small models and data that the tests have already


@dataclass(frozen=True)
class Outcome:
    """What became of an input."""

    code: int  # the exit code; 0 for success
    seconds: float
    line: str  # the error line
    fault: str  # "" for none


class Hang(BaseException):
    """Raised in an input that takes too long; no handler of Exception catches it."""


@functools.cache
def shared_folder() -> Path:
    """Returns a folder of what several inputs start from, deleted at exit."""
    folder, owner = Path(tempfile.mkdtemp(prefix="fuzz-shared-")), os.getpid()

    def delete() -> None:
        if os.getpid() == owner:  # not at the end of a forked process
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(delete)
    return folder


def made_once(name: str, write: Callable[[Path], None]) -> Path:
    """Returns a folder of `shared_folder`, which `write` fills the first time.

    Processes that are forked later find it too. An input's time begins again after it: compiling
    takes longer than LIMIT on a busy machine.
    """
    folder = shared_folder() / name
    if not folder.exists():
        part = folder.with_name(f"{name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of an input that was ended
        part.mkdir()
        _stop_timers()
        write(part)
        part.rename(folder)
        _start_timers()
    return folder


def attempt(name: str, make: MakeInput, seed: int, number: int) -> Outcome:
    """Makes an input of the area `name` and runs it. The same seed and number make the same input.

    It runs in a folder of its own with another home, so that a relative path, `~` and `../..` name
    nothing of this machine.
    """
    rng = Random(f"{name} {seed} {number}")
    top = Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder, home, current = top / "input", top / "home", top / "here" / "inner"
    for made in (folder, home, current):
        made.mkdir(parents=True)
    before = os.getcwd(), os.environ.get("HOME")
    digits = sys.get_int_max_str_digits()
    try:
        os.chdir(current)
        os.environ["HOME"] = str(home)
        return _watched(lambda: make(rng, folder))
    finally:
        os.chdir(before[0])
        os.environ["HOME"] = before[1] or str(home)
        sys.set_int_max_str_digits(digits)  # loading APPS lifts it
        shutil.rmtree(top, ignore_errors=True)


def attempt_apart(name: str, make: MakeInput, seed: int, number: int) -> Outcome:
    """Does what `attempt` does in a forked process, whose end counts too.

    A process that does not end because threads of a library wait is a fault, as is one that native
    code ends. Needs a process that has not started JAX: a forked one has none of its threads.
    """
    begun = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native code's lines and Python's at the end
        os.close(reader)
        outcome = attempt(name, make, seed, number)
        os.write(writer, json.dumps(dataclasses.astuple(outcome)).encode())
        os.close(writer)
        sys.exit(outcome.code)
    os.close(writer)
    status = _ended(child, begun + LIMIT + END_SECONDS)
    with open(reader, "rb") as pipe:
        written = pipe.read()
    ending = "does not end" if status is None else f"ended with {status}"
    if not written:
        return Outcome(1, time.monotonic() - begun, "", f"the process {ending} before its outcome")
    outcome = Outcome(*json.loads(written))
    if status != outcome.code and not outcome.fault:
        fault = f"the process {ending} after exit code {outcome.code}: {outcome.line}"
        return dataclasses.replace(outcome, fault=fault, seconds=time.monotonic() - begun)
    return outcome


def _ended(child: int, deadline: float) -> int | None:
    """Returns the exit code of a process, negative for a signal; None if it had to be killed."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _watched(make: Callable[[], Callable[[], object]]) -> Outcome:
    """Returns the outcome of what `make` returns; its seconds leave out those of `make`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "replace"))
    begun, code, fault = time.monotonic(), 0, ""
    before = signal.signal(signal.SIGALRM, _raise_hang)
    _start_timers()

    def command() -> None:
        nonlocal begun
        call = make()
        begun = time.monotonic()
        call()

    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(command)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Hang:
        fault = f"took over {LIMIT:.0f} s"
    except BaseException:
        code, fault = 1, traceback.format_exc()
    finally:
        _stop_timers()
        signal.signal(signal.SIGALRM, before)
    err.flush()
    text = err.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
    line = text.rstrip("\n").rpartition("\n")[2]
    return Outcome(code, time.monotonic() - begun, line, fault or wrong_ending(code, text))


def _start_timers() -> None:
    # For a hang outside of Python; sys.stderr is a buffer in memory.
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)


def _stop_timers() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


def _raise_hang(*_: object) -> None:
    raise Hang


def wrong_ending(code: int, stderr: str) -> str:
    """Returns what is wrong with the end of a command, "" for nothing."""
    if "Traceback (most recent call last)" in stderr:
        return f"a traceback on stderr: {stderr[-1000:]}"
    if code == 0:
        return ""
    if code != 2:
        return f"exit code {code}: {stderr[-1000:]}"
    *before, line = stderr.rstrip("\n").split("\n")
    if not line.startswith("error: ") or any(other.startswith("error: ") for other in before):
        return f"not one error line at the end: {stderr[-1000:]!r}"
    if not line.isprintable():
        return f"control characters in the error line: {line[:300]!r}"
    if len(line) > LONGEST:
        return f"an error line of {len(line)} characters: {line[:300]!r}"
    return ""
