"""What is run, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("python", "cpp", "java", "php", "ts", "cs", "sh", "js", "go")


WALL = 4.0  # wall time allowed for each second of processor time: a busy machine does not decide


@dataclass(frozen=True)
class Program:
    """One thing to run.

    Compatible mode and every language but Python run `code`. Isolated mode runs `candidate` in one
    process and `test` in another; `prompt` is the trusted part of the candidate: the helpers that
    it defines are there for the test, whatever the completion says. If the test defines `check`, it
    is called with the entry point. `entry_point` may be a comma-separated list; only these names of
    the candidate hide a builtin of the same name from the test.
    """

    task_id: str
    language: str
    code: str
    # Seconds of processor time of each process, and WALL times that of wall time
    timeout: float = 3.0
    stdin: str = ""
    # Exit: the tests ran to their end | output: exit status 0, the caller judges stdout | js:
    # nothing was printed
    rule: str = "exit"
    candidate: str = ""
    test: str = ""
    entry_point: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class Verdict:
    """How one program ended.

    Isolated mode also knows not_comparable (the test cannot be decided without believing the
    candidate) and too_large (a value exceeds the limit of one message). Neither is a failure of the
    program, and neither is a pass.
    """

    task_id: str
    # passed | failed | error | timeout | crashed | out_of_memory | not_comparable | too_large
    status: str
    detail: str = ""
    seconds: float = 0.0
    signal: int = 0
    stdout: str = ""
