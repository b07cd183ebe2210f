"""A program to run, and the verdict on how it ended."""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("python", "cpp", "java", "php", "ts", "cs", "sh", "js", "go")

# Seconds of wall time allowed per second of processor time. The limit of processor time decides,
# so that a busy machine does not turn a correct program into a timeout.
WALL = 4.0


@dataclass(frozen=True)
class Program:
    """One program to run, with its tests.

    Compatible mode and every language but Python run `code`. Isolated mode runs `candidate` in one
    process and `test` in another.

    Attributes:
        task_id: copied into the verdict.
        language: one of LANGUAGES.
        code: the complete program with its tests, as the public harness builds it.
        timeout: seconds of processor time of each process; the wall time is WALL times that.
        stdin: standard input.
        rule: how success is recognized. exit: the tests ran to their end; output: the exit status
            is 0, and the caller judges stdout; js: the tests ran to their end and nothing was
            printed.
        candidate: the program without its tests.
        test: the tests. If they define `check`, it is called with the entry point.
        entry_point: the function under test; may be a comma-separated list. Only these names of
            the candidate hide a builtin of the same name from the test.
        prompt: the trusted part of the candidate. The test uses the helpers that it defines,
            even if the completion redefines them.
    """

    task_id: str
    language: str
    code: str
    timeout: float = 3.0
    stdin: str = ""
    rule: str = "exit"
    candidate: str = ""
    test: str = ""
    entry_point: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class Verdict:
    """How one program ended.

    Attributes:
        task_id: of the program.
        status: passed, failed, error, timeout, crashed or out_of_memory. Isolated mode also has
            not_comparable (the test cannot be decided without trusting the candidate) and
            too_large (a value exceeds the limit of one message); both are neither a failure of
            the program nor a pass.
        detail: the reason, such as the text of an exception.
        seconds: wall time.
        signal: number of the signal that ended the program, or 0.
        stdout: the beginning of the program's standard output (compatible mode only).
    """

    task_id: str
    status: str
    detail: str = ""
    seconds: float = 0.0
    signal: int = 0
    stdout: str = ""
