"""Runs the tests of a project in the sandbox and records the calls of its functions.

The text of this file is the beginning of a program in the sandbox (alignment/projects.py), where no
module of this project can be imported: it uses the standard library only. A function's arguments
and results are recorded as Python literals, in a profiling hook (`sys.setprofile`; Codex, Chen et
al. 2021, section 4.2).
"""

from __future__ import annotations

import base64
import contextlib
import dis
import inspect
import io
import json
import os
import pickle
import signal
import sys
import threading
import types
import unittest
import zipfile
from typing import Any

ROOT, PACKAGES = "/tmp/project", "/tmp/packages"
MARK = "\ntraced: "  # in front of the result
MAX_LITERAL = 2_000  # characters of one argument list or result
MAX_EXAMPLES = 20  # of one function
MAX_OUTPUT = 900_000  # characters of all results: the sandbox keeps 1 MiB of a program's output
NESTING = 20
# Instructions with which a function ends that was not ended by an exception.
RETURNS = ("RETURN_VALUE", "RETURN_CONST")
Calls = dict[str, dict[str, Any]]


class NoLiteral(Exception):
    """A value has no literal that stands for all of it."""


def literal(value: Any, depth: int = 0) -> str:
    """Returns a Python expression for a value of builtin types. Raises NoLiteral for another."""
    # The exact type: an instance of a subclass of int is not equal to its literal in every respect,
    # and its `repr` may be code of the project.
    kind = type(value)
    if depth > NESTING:
        raise NoLiteral
    if value is None or kind in (bool, int, str, bytes):
        text = repr(value)
    elif kind is float:
        # Infinities have no literal, and nothing equals a NaN.
        text = repr(value)
        if text in ("inf", "-inf", "nan"):
            raise NoLiteral
    elif kind in (list, tuple):
        items = [literal(item, depth + 1) for item in value]
        inner = ", ".join(items)
        text = f"[{inner}]" if kind is list else f"({inner}{',' if len(items) == 1 else ''})"
    elif kind in (set, frozenset):
        # Sorted, because the order of a set depends on the hash seed of the process.
        inner = ", ".join(sorted(literal(item, depth + 1) for item in value))
        text = f"{{{inner}}}" if inner else "set()"
        text = f"frozenset({text if inner else ''})" if kind is frozenset else text
    elif kind is dict:
        pairs = []
        for key, item in value.items():
            pairs.append(f"{literal(key, depth + 1)}: {literal(item, depth + 1)}")
        text = f"{{{', '.join(pairs)}}}"
    else:
        raise NoLiteral
    if len(text) > MAX_LITERAL:
        raise NoLiteral
    return text


def arguments(frame: types.FrameType) -> str:
    """Returns the arguments of a call that has just begun. Raises NoLiteral."""
    # At the event "call" the locals are exactly the arguments. `co_varnames` lists positional ones,
    # then keyword-only ones, then *args and **kwargs.
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames
    count, more = code.co_argcount, code.co_kwonlyargcount
    parts = [literal(values[name]) for name in names[:count]]
    place = count + more
    if code.co_flags & inspect.CO_VARARGS:
        parts += [literal(item) for item in values[names[place]]]
        place += 1
    parts += [f"{name}={literal(values[name])}" for name in names[count : count + more]]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        for name, item in values[names[place]].items():
            if not name.isidentifier():
                raise NoLiteral
            parts.append(f"{name}={literal(item)}")
    text = ", ".join(parts)
    if len(text) > MAX_LITERAL:
        raise NoLiteral
    return text


class Recorder:
    """A profiling hook that records the calls of some functions."""

    def __init__(self, functions: dict[str, list[int]]):
        """Takes the first lines of the functions by the file's path in the project."""
        self.calls: Calls = {}
        self._lines = {f"{ROOT}/{path}": (path, set(lines)) for path, lines in functions.items()}
        self._names: dict[types.CodeType, str] = {}
        self._open: dict[int, tuple[str, str]] = {}  # by frame: the function and its arguments
        self._is_busy = False

    def hook(self, frame: types.FrameType, event: str, value: Any) -> None:
        """Is called by the interpreter at every call and return."""
        if event not in ("call", "return") or self._is_busy:
            return
        code = frame.f_code
        name = self._names.get(code)
        if name is None:
            path, lines = self._lines.get(code.co_filename, ("", set()))
            # A function in another one may begin in the same line as no top-level one. The code of
            # the module begins in line 1, and a default argument may be a lambda: their names are
            # <module> and <lambda>.
            is_function = code.co_name == code.co_qualname and code.co_name[0] != "<"
            is_traced = is_function and code.co_firstlineno in lines
            name = f"{path}:{code.co_firstlineno}" if is_traced else ""
            # Cached for every code object, since the hook runs at each call of the interpreter.
            self._names[code] = name
        if not name:
            return
        # Hashes and lengths of values may be functions of the project, which this must not record.
        self._is_busy = True
        try:
            self._record(frame, event, value, name)
        finally:
            self._is_busy = False

    def _record(self, frame: types.FrameType, event: str, value: Any, name: str) -> None:
        call = self.calls.setdefault(name, {"calls": 0, "examples": {}, "reasons": {}})
        if event == "call":
            call["calls"] += 1
            if len(call["examples"]) < MAX_EXAMPLES:
                values = frame.f_locals.values()
                with self._counting(call, values):
                    self._open[id(frame)] = name, arguments(frame)
            return
        given = self._open.pop(id(frame), None)
        if given is None:
            return
        # A profiler sees None both for `return None` and for an exception that leaves the function.
        if value is None and not has_returned(frame):
            count(call, "it raised an exception")
            return
        with self._counting(call, [value]):
            result = literal(value)
            if call["examples"].setdefault(given[1], result) != result:
                count(call, "equal arguments gave different results")

    @contextlib.contextmanager
    def _counting(self, call: dict[str, Any], values: Any) -> Any:
        """Counts values without a literal, apart those that cannot be pickled at all."""
        try:
            yield
        except NoLiteral:
            try:
                for value in values:
                    pickle.dumps(value)
                count(call, "a value has no literal")
            except Exception:
                count(call, "a value cannot be pickled")
        except Exception:
            count(call, "a value cannot be read")


def count(call: dict[str, Any], reason: str) -> None:
    """Counts a call that gives no example."""
    call["reasons"][reason] = call["reasons"].get(reason, 0) + 1


def has_returned(frame: types.FrameType) -> bool:
    """Returns whether a function that ended with None returned it, and raised no exception."""
    operation = frame.f_code.co_code[frame.f_lasti]
    return dis.opname[operation] in RETURNS


def run_tests(test: str, has_pytest: bool) -> None:
    """Runs the tests of a file, with pytest if it was packed."""
    os.chdir(ROOT)
    if has_pytest:
        import pytest

        options = ["-q", "-x", "--maxfail=1000", "-p", "no:cacheprovider", "--capture=sys"]
        pytest.main([*options, "-o", "addopts=", "-o", "filterwarnings=", test])
        return
    module = test.removesuffix(".py").replace("/", ".")
    suite = unittest.defaultTestLoader.loadTestsFromName(module)
    unittest.TextTestRunner(io.StringIO()).run(suite)


def shortened(calls: Calls) -> Calls:
    """Returns as many functions as the output may hold, with their examples."""
    kept: Calls = {}
    size = 0
    for name in sorted(calls):
        size += len(json.dumps(calls[name]))
        if size > MAX_OUTPUT:
            break
        kept[name] = calls[name]
    return kept


def main(job: dict[str, Any]) -> None:
    """Unpacks a project, runs a file of its tests and prints what was recorded.

    `job` holds `project` and `packages`, zip archives in base64; `functions`, the first lines by
    path; `paths`, folders to import from; `test`, the file; `pytest`; and `seconds`, after which
    the result so far is printed.
    """
    for folder, name in ((ROOT, "project"), (PACKAGES, "packages")):
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(job[name]))) as archive:
            archive.extractall(folder)
    sys.path[:0] = [*(f"{ROOT}/{path}".rstrip("/") for path in job["paths"]), PACKAGES]
    sys.dont_write_bytecode = True
    # The tests' own output goes to /dev/null: it could fill the sandbox's limit, or forge a result.
    # A copy of standard output is kept for the tracer.
    output = os.dup(1)
    null = os.open("/dev/null", os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    recorder = Recorder(job["functions"])

    def finish(status: str) -> None:
        sys.setprofile(None)
        result = {"status": status, "functions": shortened(recorder.calls)}
        with open(output, "w", encoding="utf-8", errors="replace") as file:
            file.write(MARK + json.dumps(result))
        # Threads and exit handlers of the tests could run for ever.
        os._exit(0)

    signal.signal(signal.SIGPROF, lambda *_: finish("out of time"))
    signal.setitimer(signal.ITIMER_PROF, job["seconds"])
    # `sys.setprofile` holds for the calling thread only.
    threading.setprofile(recorder.hook)
    sys.setprofile(recorder.hook)
    status = "ended"
    try:
        run_tests(job["test"], job["pytest"])
    except BaseException as error:
        status = f"{type(error).__name__}"
    finish(status)
