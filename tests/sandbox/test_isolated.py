"""Isolated mode has the verdicts of one process, unless it would have to trust the candidate."""

import programs
import pytest

from codellama_jax.errors import UserError
from codellama_jax.sandbox import Executor, Program


def executor(**options):
    try:
        return Executor(workers=2, **options)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def isolated():
    with executor() as made:
        yield made


def verdict(pool, candidate, test, **more):
    [(_, result)] = pool.run(
        [Program("t", "python", "", 20.0, candidate=candidate, test=test, **more)]
    )
    return result


@pytest.mark.parametrize("mode", ["isolated", "compatible"])
def test_verdicts_of_small_programs(mode):
    """The file's verdicts are those of the public package (side_by_side.py prints both)."""
    cases = programs.cases()
    assert len(cases) > 99
    with executor(mode=mode) as pool:
        result = dict(pool.run(case.program for case in cases))
    for index, case in enumerate(cases):
        expected = case.isolated if mode == "isolated" else case.expected
        assert result[index].status == expected, (case.program.task_id, result[index].detail)


def test_large_right_answers_pass(isolated):
    """As long as the answers of HumanEval+ 100 and 130, and longer."""
    piles = "def f(n): return [n + 2 * i for i in range(n)]\n"
    floats = "def f(n): return [1 + i / 2 for i in range(n)]\n"
    for candidate in (piles, floats):
        body = candidate.replace("def f(n)", "def known(n)")
        test = f"{body}assert f(1_000_000) == known(1_000_000)"
        assert verdict(isolated, candidate, test).status == "passed"


def test_a_value_over_the_limit_is_no_failure(isolated):
    result = verdict(isolated, "def f(): return 'x' * 100_000_000", "assert f() == 'y'")
    assert result.status == "too_large"
    assert "exceeds the limit of 67108864 bytes" in result.detail
    result = verdict(isolated, "def f(xs): return len(xs)", "assert f('x' * 100_000_000) == 1")
    assert result.status == "too_large"
    many = "def f(): return [0] * 10_000_000"
    assert verdict(isolated, many, "assert f() == 1").status == "out_of_memory"


def test_nothing_hides_that_values_are_not_comparable(isolated):
    candidate = "class A:\n    def __eq__(self, other): return other == 5\ndef f(): return A()\n"
    test = "try:\n    ok = f() == 5\nexcept:\n    pass\nassert 1 == {}"
    for right in (1, 2):
        result = verdict(isolated, candidate, test.format(right))
        assert result.status == "not_comparable"
        assert "class A" in result.detail


def test_classes_of_the_prompt_are_the_same_at_both_ends(isolated):
    prompt = """from dataclasses import dataclass
from enum import Enum
class Color(Enum):
    RED = 1
@dataclass
class Point:
    x: int
class Node:
    def __init__(self, value): self.value, self.next = value, None
def f(p):
"""
    body = "    return [Point(p.x + 1), isinstance(p, Point), Color.RED, Node(3), Color.RED]\n"
    test = """
def check(candidate):
    point, same, color, node, again = candidate(Point(1))
    assert point == Point(2) and Point(2) == point and point != Point(3)
    assert same and isinstance(point, Point) and isinstance(node, Node) and node.value == 3
    assert color is Color.RED and again is color
"""
    result = verdict(isolated, prompt + body, test, entry_point="f", prompt=prompt)
    assert (result.status, result.detail) == ("passed", "")


def test_a_surrogate_in_the_source_is_the_program_s_error(isolated):
    result = verdict(isolated, "x = '\ud83d'\ndef f(): return 1\n", "assert f() == 1")
    assert result.status == "error"
    assert "surrogates not allowed" in result.detail
