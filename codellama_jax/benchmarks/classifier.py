"""A classifier that the user names, which judges texts that a model wrote.

It is a Python function, as `module:function`, or a command. The function takes a record, a dict of
texts. The command reads one record per line as JSON on its standard input and answers each, before
it reads the next, with a line on its standard output. The answer is one number from 0 to 1, or
several separated by spaces; a function returns a number or a sequence of them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from codellama_jax.errors import UserError
from codellama_jax.system.files import reason

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
CLOSING_SECONDS = 5.0  # for a command to end after its input has ended
ANSWER_SECONDS = 300.0  # for one answer of a command; the first includes the loading of its model
MAX_ANSWER = 10_000  # bytes of a line that a command writes
PIPE_BYTES = 65_536  # read or written at once


class Classifier:
    """Judges records; every record gives the same numbers of `names`, each from 0 to 1."""

    def __init__(self, spec: str, names: Sequence[str]):
        """Finds the function or command. Raises UserError if there is none.

        Args:
            spec: `module:function` or a command, as --classifier takes it.
            names: of the numbers, for messages.
        """
        self.spec, self.names = spec, tuple(names)
        self._answer: Callable[[dict[str, str]], Any]
        if FUNCTION.fullmatch(spec):
            self._answer = _function(spec)
        else:
            self._answer = _Command(spec)

    def __call__(self, record: Mapping[str, str]) -> dict[str, float]:
        """Returns the numbers of a record by name. Raises UserError for any other answer."""
        answer = self._answer(dict(record))
        numbers = answer if isinstance(answer, list | tuple) else [answer]
        try:
            values = [float(number) for number in numbers]
        except (TypeError, ValueError):
            # An answer that is no number fails the check of the count below, with the same message.
            values = []
        is_valid = all(math.isfinite(value) and 0 <= value <= 1 for value in values)
        if len(values) != len(self.names) or not is_valid:
            names = " and ".join(self.names)
            raise UserError(
                f"--classifier {self.spec} answered {str(answer)[:80]!r}: it must answer each text"
                f" with {len(self.names)} of the numbers from 0 to 1 ({names})"
            )
        return dict(zip(self.names, values))


def _function(spec: str) -> Callable[[dict[str, str]], Any]:
    module_name, _, name = spec.partition(":")
    # As `python -m` does: the user's module may be in the current folder.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        fix = "name module:function of an installed package or of the current folder"
        raise UserError(f"--classifier {spec}: {error}; {fix}") from None
    except Exception as error:  # the user's module may raise anything
        problem = f"importing it raises {_shown(error)}"
        raise UserError(f"--classifier {spec}: {problem}; fix the module") from error
    if not callable(function):
        raise UserError(f"--classifier {spec} is no function: name one")

    def answer(record: dict[str, str]) -> Any:
        try:
            return function(record)
        except Exception as error:  # the user's code may raise anything
            fix = "it must answer every text with numbers"
            raise UserError(f"--classifier {spec} raised {_shown(error)}; {fix}") from error

    return answer


def _shown(error: Exception) -> str:
    """Returns the type and the text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class _Command:
    """A process that answers a line with a line. It starts with the first record."""

    def __init__(self, spec: str):
        """Checks that the program exists."""
        try:
            self._words = shlex.split(spec)
        except ValueError as error:
            raise UserError(f"--classifier {spec}: {error}") from None
        if not self._words or not shutil.which(self._words[0]):
            fix = "pass a command, or module:function of a Python function"
            raise UserError(f"--classifier {spec!r}: there is no such command; {fix}")
        self._process: subprocess.Popen[bytes] | None = None
        self._spec = spec

    def __call__(self, record: dict[str, str]) -> list[str]:
        """Returns the words of the answer to a record.

        Raises UserError if the command ends, writes several lines, or does not answer in time.
        """
        # Only after an answer: one to the first record may be there before it was read.
        if self._process and _is_ready(self._process):
            raise self._error("wrote several lines for one text")
        process = self._process or self._start()
        answer = self._exchange(process, json.dumps(record).encode() + b"\n")
        # Nothing may follow the line: the next answer would be taken for that of another text.
        line, _, rest = answer.partition(b"\n")
        if not answer:
            code = process.wait()
            raise self._error(f"ended with code {code} before it had answered")
        if rest:
            raise self._error("wrote several lines for one text")
        return line.decode(errors="replace").split()

    def _exchange(self, process: subprocess.Popen[bytes], record: bytes) -> bytes:
        """Writes a record and returns the output up to a line's end, b"" if the command ended.

        Neither waits for the other: a command may answer before it has read a long record.
        """
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + ANSWER_SECONDS
        answer = b""
        while b"\n" not in answer and len(answer) < MAX_ANSWER:
            writing = [process.stdin] if record else []
            remaining = max(0.0, deadline - time.monotonic())
            # Both pipes at once: if this process only wrote, a command that answers early could
            # fill its output pipe and stop reading, and both would wait for ever.
            readable, writable, _ = select.select([process.stdout], writing, [], remaining)
            if not readable and not writable:
                process.kill()
                fix = "a program may have to flush its output after each line"
                raise self._error(f"gave no answer within {ANSWER_SECONDS:g} s ({fix})")
            if writable:
                record = record[_written(process.stdin, record) :]
            if readable:
                part = os.read(process.stdout.fileno(), PIPE_BYTES)
                if not part:
                    return answer
                answer += part
        return answer

    def _error(self, problem: str) -> UserError:
        rule = "it must read one line of JSON and write one line, until its input ends"
        return UserError(f"--classifier {self._spec} {problem}: {rule}")

    def _start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(self._words, stdin=pipe, stdout=pipe, bufsize=0)
        except OSError as error:
            problem = f"cannot be started: {reason(error)}"
            fix = "a script needs a first line such as #!/bin/sh"
            raise UserError(f"--classifier {self._spec} {problem} ({fix})") from None
        assert self._process.stdin is not None
        # A write to a blocking pipe waits until all is taken, also where select reports some room.
        os.set_blocking(self._process.stdin.fileno(), False)
        weakref.finalize(self, _end, self._process)
        return self._process


def _written(pipe: IO[bytes], record: bytes) -> int:
    """Returns how many bytes of a record a pipe took; all of them if nothing reads it any more."""
    try:
        return os.write(pipe.fileno(), record[:PIPE_BYTES])
    except BrokenPipeError:  # a command that has ended may have answered without reading
        return len(record)


def _is_ready(process: subprocess.Popen[bytes]) -> bool:
    """Returns whether a command has written something that was not read."""
    assert process.stdout is not None
    # A pipe whose writer has ended is readable too.
    return process.poll() is None and bool(select.select([process.stdout], [], [], 0)[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the input of a command, on which it ends itself, and kills it if it does not."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(CLOSING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
