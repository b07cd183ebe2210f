"""Isolated mode: the candidate answers calls in one process, tests and comparisons run in another.

`values` is the closed list of what crosses the pipe between them, `trusted` and `candidate` are its
two ends.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import importlib
import os
import signal
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

from codellama_jax.sandbox.inside import linux as kernel
from codellama_jax.sandbox.inside import names
from codellama_jax.sandbox.inside.candidate import Candidate
from codellama_jax.sandbox.inside.programs import read_job, write_verdict
from codellama_jax.sandbox.inside.remote import is_remote
from codellama_jax.sandbox.inside.served import TEST_MODULE
from codellama_jax.sandbox.inside.trusted import Tests
from codellama_jax.sandbox.inside.values import NotComparable
from codellama_jax.sandbox.inside.wire import WireError

if TYPE_CHECKING:
    from codellama_jax.sandbox.inside.slot import Confinement

MAX_TEXT = 2000
_REHEARSAL = {
    "candidate": "def f(a, b):\n    return a",
    "test": "for i in range(20):\n    assert f([i, 'a'], (1.5, i)) == [i, 'a']",
    "entry_point": "f",
    "prompt": "",
}


def judge(box: Confinement, seconds: float, job_fd: int) -> None:
    """Forks the candidate, then reads the job: no word of the test was ever in its memory."""
    ask, answer = os.pipe(), os.pipe()
    kills = box.oom_kills()
    pid = os.fork()
    if pid == 0:
        try:
            box.confine(True, seconds, {ask[0], answer[1]})
            Candidate(ask[0], answer[1], {}).run()
        finally:
            os._exit(0)
    os.close(ask[0])
    os.close(answer[1])
    job = read_job(job_fd)
    keep = {ask[1], answer[0], job_fd, box.oom_events}
    box.confine(True, seconds, keep, judge=True)
    namespace = _Names({name.strip() for name in job["entry_point"].split(",")})
    sys.modules[TEST_MODULE] = types.ModuleType(TEST_MODULE)  # dataclasses look their module up
    tests = namespace.tests = Tests(answer[0], ask[1], namespace)
    status, detail, number = *_run_test(tests, namespace, job), 0
    if NotComparable.reasons:
        status, detail = "not_comparable", NotComparable.reasons[0][:MAX_TEXT]
    elif tests.verdict == ("error", "no answer"):
        out_of_memory = box.oom_kills() > kills
        status, detail, number = _cause_of_death(pid, out_of_memory, seconds)
    elif tests.verdict:
        status, detail = tests.verdict
    elif status == "passed" and (doubt := tests.doubt()):
        status, detail = "not_comparable", doubt[:MAX_TEXT]
    write_verdict(job_fd, status, detail, signal=number)


def rehearse() -> None:
    """Runs one test with both ends in this process.

    What Python prepares for a first call is then in the memory that later tests are forked from.
    """
    ask, answer = os.pipe(), os.pipe()
    _thread.start_new_thread(_answer_until_closed, (ask[0], answer[1]))
    namespace = _Names({"f"})
    tests = namespace.tests = Tests(answer[0], ask[1], namespace)
    _run_test(tests, namespace, _REHEARSAL)
    os.close(ask[1])
    os.read(answer[0], 1)  # returns when the other end is closed
    os.close(answer[0])


def _answer_until_closed(read_fd: int, write_fd: int) -> None:
    with contextlib.suppress(WireError):
        Candidate(read_fd, write_fd, {}).run()
    os.close(read_fd)
    os.close(write_fd)


def _cause_of_death(pid: int, out_of_memory: bool, seconds: float) -> tuple[str, str, int]:
    """Returns status, detail and signal of a candidate whose process has ended."""
    _, status, usage = os.wait4(pid, 0)
    if not out_of_memory and kernel.out_of_time(status, usage, seconds):
        return "timeout", "", 0
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return "crashed", f"exited with status {code} before its tests were done", 0
    if out_of_memory:
        return "out_of_memory", "killed for its memory", -code
    return "crashed", f"killed by {signal.Signals(-code).name}", -code


def _run_test(tests: Tests, namespace: _Names, job: dict) -> tuple[str, str]:
    """Returns status and detail of the test at this end of the pipe."""
    try:
        tests.ask("load", job["candidate"])
        exec(_helpers(job["prompt"]), namespace)
        namespace.clear_entry_points()
        exec(compile(job["test"], "<test>", "exec"), namespace)
        if "check" in namespace:
            namespace["check"](namespace[job["entry_point"]])
    except AssertionError as error:
        return "failed", _text(error)
    except MemoryError as error:
        return "out_of_memory", _text(error) or "MemoryError"
    except TypeError as error:
        if tests.extends_container and not _is_of_candidate(error):
            return "not_comparable", f"a list or dict of the candidate's class: {_text(error)}"
        return "error", f"{type(error).__name__}: {_text(error)}"
    except BaseException as error:
        return "error", f"{type(error).__name__}: {_text(error)}"
    return "passed", ""


def _is_of_candidate(error: BaseException) -> bool:
    """Returns whether an exception is an answer of the candidate."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return str(last[0].f_globals.get("__name__")).startswith(__package__)


def _text(error: BaseException) -> str:
    return str(error)[:MAX_TEXT]


def _helpers(prompt: str) -> types.CodeType:
    """Compiles the longest run of leading lines of a prompt that is a program.

    These are its imports and the functions that a test may use.
    """
    lines = prompt.splitlines()
    for end in range(len(lines), -1, -1):
        try:
            return compile("\n".join(lines[:end]), "<prompt>", "exec")
        except SyntaxError:
            continue
    raise AssertionError("nothing is always a program")


class _Names(dict):
    """The test's globals: its own and the prompt's, then builtins, then the candidate's."""

    tests: Tests

    def __init__(self, entry_points: set[str]):
        super().__init__(__name__=TEST_MODULE)
        self._entry_points = entry_points

    def clear_entry_points(self) -> None:
        """Forgets the prompt's beginning of the function to be written: the candidate's counts."""
        for name in self._entry_points & self.keys():
            del self[name]

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and name not in self._entry_points:
            raise KeyError(name)
        kind, value = self.tests.ask_name(name)
        if kind == "missing":
            raise KeyError(name)
        if kind == "module":
            if not names.is_importable(value):
                raise NotComparable(
                    f"{name} is the module {value[:100]}, which the tests do not import"
                )
            return importlib.import_module(value)
        if names.is_importable(name) and name not in self._entry_points:
            _check_no_module(name, value)
        return value


def _check_no_module(name: str, value: Any) -> None:
    """Raises NotComparable for an object with attributes in the place of a library's module.

    Some published tests use a module that only the program imports.
    """
    if is_remote(value) or type(value) is types.SimpleNamespace:
        raise NotComparable(f"{name} is not the module of this name")
