"""Tries one input and decides whether its outcome is a fault.

An input must either succeed or end like a user's mistake: exit code 2, after one line `error: ...`
on stderr. These are faults: any other exception or exit code; a traceback on stderr; an error line
with control characters or longer than LONGEST; more than LIMIT seconds.
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
LIMIT = 60.0  # seconds that an input may take
END_SECONDS = 30.0  # in addition to LIMIT, for a forked process to end
LONGEST = 2_000  # characters of an error line
# Makes an input from random numbers in an empty folder, and returns a function that uses the input
# like a command does.
MakeInput = Callable[[Random, Path], Callable[[], object]]

for _folder in ("", "tests/benchmarks", "tests/weights", "tests"):
    if str(ROOT / _folder) not in sys.path:
        sys.path.append(str(ROOT / _folder))  # the tests' small models and data


@dataclass(frozen=True)
class Outcome:
    """The result of an input."""

    code: int  # the exit code; 0 for success
    seconds: float  # without making the input
    line: str  # the error line
    fault: str  # a description of the fault, "" if there is none


class Hang(BaseException):
    """Raised in an input that takes too long; not an Exception, which library code would catch."""


@functools.cache
def shared_folder() -> Path:
    """Returns a folder for files that several inputs start from. It is deleted at exit."""
    folder, owner = Path(tempfile.mkdtemp(prefix="fuzz-shared-")), os.getpid()

    def delete() -> None:
        if os.getpid() == owner:  # not at the end of a forked process
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(delete)
    return folder


def made_once(name: str, write: Callable[[Path], None]) -> Path:
    """Returns the folder `name` of `shared_folder`, which `write` fills the first time.

    Processes that are forked later share it. The time limit of the input starts again afterwards,
    because compiling takes longer than LIMIT on a busy machine.
    """
    folder = shared_folder() / name
    if not folder.exists():
        part = folder.with_name(f"{name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left by an input that took too long
        part.mkdir()
        _stop_timers()
        write(part)
        part.rename(folder)
        _start_timers()
    return folder


def attempt(name: str, make: MakeInput, seed: int, number: int) -> Outcome:
    """Makes input `number` of the area `name`, and tries it.

    The input depends only on the arguments. It runs in a temporary folder with another home folder,
    so that a relative path, `~` and `../..` never name a file of this machine.
    """
    # A text as the seed: Python hashes it, so that areas and numbers give unrelated inputs.
    rng = Random(f"{name} {seed} {number}")
    # Two levels below the temporary folder, because an input may name "../..".
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
        sys.set_int_max_str_digits(digits)  # loading APPS removes the limit
        shutil.rmtree(top, ignore_errors=True)


def attempt_apart(name: str, make: MakeInput, seed: int, number: int) -> Outcome:
    """Tries an input like `attempt`, but in a forked process.

    It is a fault if the process does not end, because a thread waits, or if native code crashes.
    This process must not have started JAX, because a forked process lacks JAX's threads.
    """
    begun = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Native code and the end of Python write to stderr, too; the harness keeps its own buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.close(reader)
        outcome = attempt(name, make, seed, number)
        os.write(writer, json.dumps(dataclasses.astuple(outcome)).encode())
        os.close(writer)
        sys.exit(outcome.code)
    os.close(writer)
    # The parent's end is closed as well, or reading would never see the end of the pipe.
    status = _ended(child, begun + LIMIT + END_SECONDS)
    # Read after the process has ended: an outcome is far smaller than the buffer of a pipe.
    with open(reader, "rb") as pipe:
        written = pipe.read()
    ending = "does not end" if status is None else f"ended with {status}"
    if not written:
        return Outcome(1, time.monotonic() - begun, "", f"the process {ending} before its outcome")
    outcome = Outcome(*json.loads(written))
    # The outcome was written, but the process did not end as it should have.
    if status != outcome.code and not outcome.fault:
        fault = f"the process {ending} after exit code {outcome.code}: {outcome.line}"
        return dataclasses.replace(outcome, fault=fault, seconds=time.monotonic() - begun)
    return outcome


def _ended(child: int, deadline: float) -> int | None:
    """Returns the exit code of a process, negative for a signal, None if it had to be killed."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _watched(make: Callable[[], Callable[[], object]]) -> Outcome:
    """Makes an input and tries it. The seconds of the outcome do not include `make`."""
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
        # As Python does: None is success, a text is an error.
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
    # A signal is handled only by Python code. For native code that hangs, faulthandler ends the
    # process; it writes to the original stderr, since sys.stderr is a buffer in memory.
    stderr = sys.__stderr__
    assert stderr is not None  # None only on Windows without a console
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=stderr)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)


def _stop_timers() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


def _raise_hang(*_: object) -> None:
    raise Hang


def wrong_ending(code: int, stderr: str) -> str:
    """Returns the fault in the exit code and stderr of a command, "" if there is none."""
    if "Traceback (most recent call last)" in stderr:
        return f"a traceback on stderr: {stderr[-1000:]}"
    if code == 0:
        return ""
    if code != 2:
        return f"exit code {code}: {stderr[-1000:]}"
    # Warnings may come before the error line.
    *before, line = stderr.rstrip("\n").split("\n")
    if not line.startswith("error: ") or any(other.startswith("error: ") for other in before):
        return f"not one error line at the end: {stderr[-1000:]!r}"
    if not line.isprintable():
        return f"control characters in the error line: {line[:300]!r}"
    if len(line) > LONGEST:
        return f"an error line of {len(line)} characters: {line[:300]!r}"
    return ""
