"""Isolated mode: the candidate runs in one process, tests and comparisons in another.

The tests call the candidate's functions through a pipe. `values` is the closed list of types that
cross it, `trusted` is the end of the tests and `candidate` the end of the candidate. A candidate
can therefore return wrong values, but it cannot replace a comparison or report a verdict.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import importlib
import os
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

from codellama_jax.sandbox.inside import names
from codellama_jax.sandbox.inside.candidate import Candidate
from codellama_jax.sandbox.inside.programs import read_job, signal_name, write_verdict
from codellama_jax.sandbox.inside.remote import is_remote
from codellama_jax.sandbox.inside.served import TEST_MODULE
from codellama_jax.sandbox.inside.trusted import Tests
from codellama_jax.sandbox.inside.values import NotComparable
from codellama_jax.sandbox.inside.wire import WireError
from codellama_jax.system import linux

if TYPE_CHECKING:
    from codellama_jax.sandbox.inside.slot import Confinement

MAX_TEXT = 2000  # characters of a verdict's detail
_REHEARSAL = {
    "candidate": "def f(a, b):\n    return a",
    "test": "for i in range(20):\n    assert f([i, 'a'], (1.5, i)) == [i, 'a']",
    "entry_point": "f",
    "prompt": "",
}


def judge(confinement: Confinement, seconds: float, job_fd: int) -> None:
    """Runs the test of the job in the memory file `job_fd` and writes the verdict there.

    `seconds` limits the processor time of the candidate, and of the test, each.
    """
    # One pipe carries requests of the test, the other one the candidate's answers.
    requests, answers = os.pipe(), os.pipe()
    kills = confinement.oom_kills()
    # The candidate is forked before the job is read, so no part of the test is ever in the
    # candidate's memory.
    pid = os.fork()
    if pid == 0:
        try:
            confinement.confine(True, seconds, {requests[0], answers[1]})
            Candidate(requests[0], answers[1], {}).run()
        finally:
            os._exit(0)
    os.close(requests[0])
    os.close(answers[1])
    job = read_job(job_fd)
    # The prompt's helpers and the test run here. They are trusted, but they handle objects of the
    # candidate, so this process is confined as well.
    keep = {requests[1], answers[0], job_fd, confinement.oom_events}
    confinement.confine(True, seconds, keep, judge=True)
    namespace = _Names({name.strip() for name in job["entry_point"].split(",")})
    # `dataclasses` looks up the module of each class that a test defines.
    sys.modules[TEST_MODULE] = types.ModuleType(TEST_MODULE)
    tests = namespace.tests = Tests(answers[0], requests[1], namespace)
    status, detail = _run_test(tests, namespace, job)
    number = 0
    # The test may have caught any exception, so the recorded reasons come before its own result.
    if NotComparable.reasons:
        status, detail = "not_comparable", NotComparable.reasons[0][:MAX_TEXT]
    elif tests.verdict == ("error", "no answer"):
        # The pipe is closed: the candidate's process has ended.
        out_of_memory = confinement.oom_kills() > kills
        status, detail, number = _cause_of_death(pid, out_of_memory, seconds)
    elif tests.verdict:
        status, detail = tests.verdict
    elif status == "passed":
        doubt = tests.doubt()
        if doubt:
            status, detail = "not_comparable", doubt[:MAX_TEXT]
    write_verdict(job_fd, status, detail, signal=number)


def rehearse() -> None:
    """Runs one test with both ends of the pipe in this process.

    Python prepares some structures at the first call. They are then in the memory that later
    tests are forked from, which makes each of them start faster.
    """
    requests, answers = os.pipe(), os.pipe()
    _thread.start_new_thread(_answer_until_closed, (requests[0], answers[1]))
    namespace = _Names({"f"})
    tests = namespace.tests = Tests(answers[0], requests[1], namespace)
    _run_test(tests, namespace, _REHEARSAL)
    os.close(requests[1])
    os.read(answers[0], 1)  # returns once the thread has closed the other end
    os.close(answers[0])


def _answer_until_closed(read_fd: int, write_fd: int) -> None:
    with contextlib.suppress(WireError):
        Candidate(read_fd, write_fd, {}).run()
    os.close(read_fd)
    os.close(write_fd)


def _cause_of_death(pid: int, out_of_memory: bool, seconds: float) -> tuple[str, str, int]:
    """Returns status, detail and signal of a candidate whose process has ended."""
    _, status, usage = os.wait4(pid, 0)
    if not out_of_memory and linux.out_of_time(status, usage, seconds):
        return "timeout", "", 0
    code = os.waitstatus_to_exitcode(status)
    # A candidate never exits by itself: it serves until the pipe is closed.
    if code >= 0:
        return "crashed", f"exited with status {code} before its tests were done", 0
    if out_of_memory:
        return "out_of_memory", "killed for its memory", -code
    return "crashed", f"killed by {signal_name(-code)}", -code


def _run_test(tests: Tests, namespace: _Names, job: dict) -> tuple[str, str]:
    """Runs the test at this end of the pipe and returns its status and detail."""
    try:
        tests.request("load", job["candidate"])
        # The prompt is trusted. Its helpers run here, whatever the candidate makes of them.
        exec(_helpers(job["prompt"]), namespace)
        namespace.clear_entry_points()
        exec(compile(job["test"], "<test>", "exec"), namespace)
        # HumanEval's tests define `check(candidate)`; MBPP's are plain assertions.
        if "check" in namespace:
            namespace["check"](namespace[job["entry_point"]])
    except AssertionError as error:
        return "failed", _text(error)
    except MemoryError as error:
        return "out_of_memory", _text(error) or "MemoryError"
    except TypeError as error:
        # C code of the library accepts a list or dict, but not the proxy of a subclass of one.
        # Such a TypeError is no failure of the candidate.
        if tests.extends_container and not _is_of_candidate(error):
            return "not_comparable", f"a list or dict of the candidate's class: {_text(error)}"
        return "error", f"{type(error).__name__}: {_text(error)}"
    except BaseException as error:
        return "error", f"{type(error).__name__}: {_text(error)}"
    return "passed", ""


def _is_of_candidate(error: BaseException) -> bool:
    """Returns whether the candidate raised the exception, which the pipe then raised here."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return str(last[0].f_globals.get("__name__")).startswith(__package__)


def _text(error: BaseException) -> str:
    return str(error)[:MAX_TEXT]


def _helpers(prompt: str) -> types.CodeType:
    """Compiles the longest beginning of a prompt, in lines, that is a valid program.

    It holds the imports and functions that a test may use. The rest is the beginning of the
    function to be completed, which is no valid program without its body.
    """
    lines = prompt.splitlines()
    for end in range(len(lines), -1, -1):
        try:
            return compile("\n".join(lines[:end]), "<prompt>", "exec")
        except SyntaxError:
            continue
    raise AssertionError("the empty program always compiles")


class _Names(dict):
    """The test's globals.

    A name is looked up among those that the test and the prompt define, then among builtins, then
    in the candidate's process.
    """

    tests: Tests

    def __init__(self, entry_points: set[str]):
        super().__init__(__name__=TEST_MODULE)
        self._entry_points = entry_points

    def clear_entry_points(self) -> None:
        """Removes entry points that the prompt defines: the candidate's definition counts."""
        for name in self._entry_points & self.keys():
            del self[name]

    # Python calls this for a name that is not in the dictionary.
    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and name not in self._entry_points:
            raise KeyError(name)
        kind, value = self.tests.request_name(name)
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
    """Raises NotComparable if `value` is an object that the candidate put in a module's place.

    Some published tests use a module, such as `math`, that only the program imports. A candidate
    could define an object of this name whose functions return the expected values.
    """
    if is_remote(value) or type(value) is types.SimpleNamespace:
        raise NotComparable(f"{name} is not the module of this name")
