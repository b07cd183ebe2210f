"""How programs that a model wrote do on tests, in the four grades of PanGu-Coder2's ranking.

All of them run in the sandbox, in isolated mode.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from codellama_jax.benchmarks.programs import parse
from codellama_jax.benchmarks.suites.apps import same_output
from codellama_jax.benchmarks.suites.mbpp import tested_names
from codellama_jax.sandbox import Program
from codellama_jax.sandbox.executor import Executor

TIMEOUT = 5.0  # seconds of processor time of one program


class Outcome(enum.IntEnum):
    """Grades of a program, worst first (PanGu-Coder2, section 3.2)."""

    COMPILE_ERROR = 0
    RUNTIME_ERROR = 1
    PARTIAL = 2
    PASSED = 3


class Candidate(NamedTuple):
    """A program and the tests that it should pass: statements, or input and output of examples."""

    name: str
    code: str
    tests: tuple[str, ...]  # assert statements
    examples: tuple[tuple[str, str], ...] = ()  # standard input and expected output; no `tests`


class Graded(NamedTuple):
    """The outcome of a candidate."""

    outcome: Outcome
    passed: int  # tests
    detail: str  # of the first test that did not pass


def passing(executor: Executor, candidates: Sequence[Candidate]) -> Iterator[tuple[int, str]]:
    """Yields (position, status) of each candidate as its tests end.

    All statements run in one program, and every example in a separate one. The status is that of
    the sandbox, of the first example that did not pass: `passed` if all tests passed.
    """
    programs, owners = [], []
    for position, candidate in enumerate(candidates):
        # One program with all asserts: it stops at the first that fails, which is all that is
        # needed here, unlike in `grade`.
        if not candidate.examples:
            programs.append(_program(candidate, candidate.tests))
            owners.append((position, 0))
        for number, (stdin, _) in enumerate(candidate.examples):
            run = Program(candidate.name, "python", candidate.code, TIMEOUT, stdin, "output")
            programs.append(run)
            owners.append((position, number))
    statuses: list[dict[int, str]] = [{} for _ in candidates]
    for index, verdict in executor.run(programs):
        position, number = owners[index]
        examples, status = candidates[position].examples, verdict.status
        # The sandbox only reports that the program ended well; its output is compared here.
        if examples and status == "passed" and not same_output(verdict.stdout, examples[number][1]):
            status = "failed"
        statuses[position][number] = status
        # Programs end in any order: a candidate is complete once every one that it has was run.
        if len(statuses[position]) == max(1, len(examples)):
            ends = [statuses[position][each] for each in sorted(statuses[position])]
            failures = [end for end in ends if end != "passed"]
            yield position, failures[0] if failures else "passed"


def grade(executor: Executor, candidates: Sequence[Candidate]) -> list[Graded]:
    """Returns the outcome of each candidate; every test runs separately.

    A program that runs and passes only some of its tests, or none although no test ended with an
    error, is PARTIAL. One that passes none, and of which a test ended with an exception, a crash or
    a timeout, is a RUNTIME_ERROR. Raises ValueError for a candidate without tests.
    """
    programs = []
    owners = []
    for index, candidate in enumerate(candidates):
        if not candidate.tests:
            raise ValueError(f"{candidate.name} has no tests")
        # A COMPILE_ERROR needs no run; `_graded` recognises it again by parsing.
        if parse(candidate.code) is None:
            continue
        for test in candidate.tests:
            # Separately, since PARTIAL needs to know how many tests pass, not only whether all do.
            programs.append(_program(candidate, (test,)))
            owners.append(index)
    statuses: list[list[tuple[int, str, str]]] = [[] for _ in candidates]
    for position, verdict in executor.run(programs):
        statuses[owners[position]].append((position, verdict.status, verdict.detail))
    return [_graded(candidate, sorted(ends)) for candidate, ends in zip(candidates, statuses)]


def _graded(candidate: Candidate, ends: Sequence[tuple[int, str, str]]) -> Graded:
    if parse(candidate.code) is None:
        return Graded(Outcome.COMPILE_ERROR, 0, "the code does not parse")
    passed = sum(status == "passed" for _, status, _ in ends)
    failures = [(status, detail) for _, status, detail in ends if status != "passed"]
    if not failures:
        return Graded(Outcome.PASSED, passed, "")
    detail = ": ".join(part for part in failures[0] if part)
    # A wrong result is "failed"; an exception, a crash or a timeout has another status.
    only_wrong = all(status == "failed" for status, _ in failures)
    outcome = Outcome.PARTIAL if passed or only_wrong else Outcome.RUNTIME_ERROR
    return Graded(outcome, passed, detail)


def _program(candidate: Candidate, tests: Sequence[str]) -> Program:
    test = "\n".join(tests)
    # Tests of a file that is not this project's may be other text than Python.
    is_python = parse(candidate.code) is not None and parse(test) is not None
    # The names under test: for these alone a definition of the candidate hides a builtin of the
    # same name from the tests.
    names = tested_names(candidate.code, list(tests)) if is_python else []
    return Program(
        candidate.name,
        "python",
        f"{candidate.code}\n{test}\n",
        TIMEOUT,
        candidate=candidate.code,
        test=test,
        entry_point=",".join(names),
    )
