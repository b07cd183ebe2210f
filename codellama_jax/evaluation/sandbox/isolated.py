"""Isolated mode: the candidate answers calls in one process, the tests and every comparison run in another.

What the test sees of the candidate is plain data, or a `Remote`: an object that stays in the candidate's process, is equal to nothing
but itself, and whose attributes, calls and items are asked for over the pipe. Arguments are copies: a candidate that changes them
changes nothing of the test's.
"""

from __future__ import annotations

import builtins
import importlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from codellama_jax.evaluation.sandbox import kernel, wire
from codellama_jax.evaluation.sandbox.programs import read_job, write_verdict

if TYPE_CHECKING:
    from codellama_jax.evaluation.sandbox.slot import Confinement

MAX_ITEMS = 1_000_000
MAX_TEXT = 2000


class CandidateError(Exception):
    """An exception that the candidate raised and that the test knows by no name of its own."""


class Gone(BaseException):
    """The candidate's process does not answer any more; no `except Exception` of a test may hide it."""


def judge(box: Confinement, seconds: float, job_fd: int) -> None:
    """Forks the candidate, then reads the job, so that no word of the test was ever in the candidate's memory."""
    ask, answer = os.pipe(), os.pipe()
    kills = box.oom_kills()
    pid = os.fork()
    if pid == 0:
        try:
            box.confine(True, seconds, {ask[0], answer[1]})
            _answer_calls(ask[0], answer[1])
        finally:
            os._exit(0)
    os.close(ask[0])
    os.close(answer[1])
    job = read_job(job_fd)
    keep = {ask[1], answer[0], job_fd, box.oom_events}
    box.confine(True, seconds, keep, judge=True)
    candidate = _Candidate(ask[1], answer[0])
    status, detail = _run_test(candidate, job)
    if candidate.gone:
        status, detail, number = _cause_of_death(pid, candidate.gone, box.oom_kills() > kills, seconds)
    write_verdict(job_fd, status, detail, signal=number if candidate.gone else 0)


def _cause_of_death(pid: int, reason: str, out_of_memory: bool, seconds: float) -> tuple[str, str, int]:
    if reason != "no answer":
        return "error", reason, 0
    _, status, usage = os.wait4(pid, 0)
    if not out_of_memory and kernel.out_of_time(status, usage, seconds):
        return "timeout", "", 0
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal.Signals(-code).name
        return ("out_of_memory", "killed for its memory", -code) if out_of_memory else ("crashed", f"killed by {name}", -code)
    return "crashed", f"exited with status {code} before its tests were done", 0


def _run_test(candidate: _Candidate, job: dict) -> tuple[str, str]:
    """Returns status and detail of the test on this side of the pipe."""
    names = _Names(candidate, {name.strip() for name in job["entry_point"].split(",")})
    try:
        candidate.load(job["candidate"])
        exec(_helpers(job["prompt"]), names)
        names.clear_entry_points()
        exec(compile(job["test"], "<test>", "exec"), names)
        if "check" in names:
            names["check"](names[job["entry_point"]])
    except AssertionError as error:
        return "failed", _text(error)
    except MemoryError:
        return "out_of_memory", "MemoryError"
    except (Exception, Gone, SystemExit) as error:
        return "error", f"{type(error).__name__}: {_text(error)}"
    return ("error", candidate.gone) if candidate.gone else ("passed", "")


def _text(error: BaseException) -> str:
    return str(error)[:MAX_TEXT]


def _helpers(prompt: str) -> types.CodeType:
    """Compiles the longest run of leading lines of a prompt that is a program: its imports and the functions a test may use."""
    lines = prompt.splitlines()
    for end in range(len(lines), -1, -1):
        try:
            return compile("\n".join(lines[:end]), "<prompt>", "exec")
        except SyntaxError:
            continue
    raise AssertionError("nothing is always a program")


class _Names(dict):
    """The test's globals: its own and the prompt's names, then builtins, then what the candidate defines."""

    def __init__(self, candidate: _Candidate, entry_points: set[str]):
        super().__init__(__name__="__test__")
        self._candidate, self._entry_points = candidate, entry_points

    def clear_entry_points(self) -> None:
        """Forgets the prompt's beginning of the function to be written: the candidate's is the one to test."""
        for name in self._entry_points & self.keys():
            del self[name]

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and name not in self._entry_points:
            raise KeyError(name)
        return self._candidate.name(name)


class _Candidate:
    """The trusted end of the pipe."""

    def __init__(self, write_fd: int, read_fd: int):
        self._write_fd, self._read_fd = write_fd, read_fd
        self.gone = ""  # why it does not answer any more

    def load(self, source: str) -> None:
        self.ask("load", source)

    def name(self, name: str) -> Any:
        """Returns what the candidate calls `name`: a module of the standard library is imported on this side."""
        kind, value = self.ask("name", name)
        if kind == "missing":
            raise KeyError(name)
        if kind == "module":
            if value.partition(".")[0] not in sys.stdlib_module_names:
                raise CandidateError(f"{name} is a module that tests do not get")
            return importlib.import_module(value)
        return value

    def ask(self, *request: Any) -> Any:
        """Sends a request and returns the answer. Raises what the candidate raised, under a builtin's name or as CandidateError."""
        if self.gone:
            raise Gone(self.gone)
        message = wire.encode(list(request), self._reference)
        try:
            wire.send(self._write_fd, message)
            good, value = wire.answer(self._read_fd, lambda ref: Remote(self, ref))
        except (wire.WireError, OSError) as error:
            self.gone = "no answer" if isinstance(error, OSError) else _text(error)
            raise Gone(self.gone) from None
        if good:
            return value
        name, text = (part[:MAX_TEXT] for part in value)
        kind = getattr(builtins, name, None)
        raise kind(text) if _is_plain_exception(kind) else CandidateError(f"{name}: {text}")

    def _reference(self, value: Any) -> int:
        if type(value) is not Remote:
            raise CandidateError(f"the test hands over a {type(value).__name__}, which is not plain data")
        return object.__getattribute__(value, "_ref")


def _is_plain_exception(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError)  # whose arguments are others


class Remote:
    """An object in the candidate's process. Equality is identity, and it is true: nothing the candidate says decides either."""

    __slots__ = ("_owner", "_ref")

    def __init__(self, owner: _Candidate, ref: int):
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_ref", ref)

    def __eq__(self, other: object) -> bool:
        return type(other) is Remote and other._ref == self._ref

    def __hash__(self) -> int:
        return hash(self._ref)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._owner.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._owner.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._owner.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._owner.ask("item", self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._owner.ask("list", self))

    def __len__(self) -> int:
        return len(self._owner.ask("list", self))

    def __bool__(self) -> bool:
        return True


def _answer_calls(read_fd: int, write_fd: int) -> None:
    """The candidate's end: serves requests until the pipe is closed. Nothing here is believed by the other end."""
    objects: dict[int, Any] = {}
    names: dict[str, Any] = {}

    def refer(value: Any) -> int:
        objects[id(value)] = value
        return id(value)

    while True:
        request = wire.decode(wire.receive(read_fd), objects.__getitem__)
        try:
            wire.send(write_fd, wire.encode([True, _act(names, *request)], refer))
        except BaseException as error:
            wire.send(write_fd, [False, [type(error).__name__, _safe_text(error)]])


def _safe_text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_TEXT]
    except BaseException:
        return ""


def _act(names: dict[str, Any], verb: str, *arguments: Any) -> Any:
    if verb == "load":
        return exec(compile(arguments[0], "<candidate>", "exec"), names)
    if verb == "name":
        if arguments[0] not in names:
            return "missing", None
        value = names[arguments[0]]
        return ("module", value.__name__) if isinstance(value, types.ModuleType) else ("value", value)
    if verb == "call":
        function, positional, named = arguments
        return function(*positional, **named)
    if verb == "get":
        return getattr(*arguments)
    if verb == "set":
        return setattr(*arguments)
    if verb == "item":
        return arguments[0][arguments[1]]
    return [item for item, _ in zip(arguments[0], range(MAX_ITEMS))]
