"""Programs are graded by what they do, in the sandbox."""

import pytest

from codellama_jax.alignment.outcomes import Candidate, Outcome, grade, passing
from codellama_jax.sandbox.executor import Executor

TESTS = ("assert f(1) == 2", "assert f(2) == 3", "assert f(-1) == 0")


@pytest.fixture(scope="module")
def executor():
    with Executor(workers=2) as workers:
        yield workers


def graded(executor, *codes):
    return grade(executor, [Candidate(f"c{i}", code, TESTS) for i, code in enumerate(codes)])


def test_the_four_grades(executor):
    right = "def f(x):\n    return x + 1\n"
    some = "def f(x):\n    return abs(x) + 1\n"
    wrong = "def f(x):\n    return x\n"
    raises = "def f(x):\n    return x + y\n"
    results = graded(executor, right, some, wrong, raises, "def f(x:", "import sys; sys.exit(0)")
    expected = [
        Outcome.PASSED,
        Outcome.PARTIAL,
        Outcome.PARTIAL,
        Outcome.RUNTIME_ERROR,
        Outcome.COMPILE_ERROR,
        Outcome.RUNTIME_ERROR,
    ]
    assert [result.outcome for result in results] == expected
    assert [result.passed for result in results] == [3, 2, 0, 0, 0, 0]
    assert "NameError" in results[3].detail


def test_a_program_that_cheats_does_not_pass(executor):
    equal = (
        "class A:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return A()\n"
    )
    exits = "import os\ndef f(x):\n    os._exit(0)\n"
    results = graded(executor, equal, exits)
    assert Outcome.PASSED not in [result.outcome for result in results]


def test_all_tests_at_once(executor):
    codes = ["def f(x):\n    return x + 1\n", "def f(x):\n    return abs(x) + 1\n"]
    candidates = [Candidate(f"c{i}", code, TESTS) for i, code in enumerate(codes)]
    assert dict(passing(executor, candidates)) == {0: "passed", 1: "failed"}
