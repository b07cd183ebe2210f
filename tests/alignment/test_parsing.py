"""Questions and tests in answers of any form."""

import pytest

from codellama_jax.alignment import parsing
from codellama_jax.benchmarks import programs


def test_questions_of_a_numbered_list():
    answer = "Here they are:\n\n1. Add two\nnumbers.\n2) Sort a list?\n 3. Sort a list?\n\nEnjoy!"
    assert parsing.questions(answer) == ["Add two numbers.", "Sort a list?", "Sort a list?"]
    assert parsing.different(parsing.questions(answer)) == ["Add two numbers.", "Sort a list?"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", []),
        ("no list here", []),
        ("1. complete.\n2. cut short in the mid", ["complete."]),
        ("1.\n2. x.", ["x."]),
        ("1. " + "a" * 3_000 + ".", []),
        ("1. a.\n" * 10_000, []),
    ],
)
def test_answers_without_the_list_lose_only_what_is_broken(answer, expected):
    assert parsing.questions(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "[TESTS]\n#Test case 1:\nassert f(1) == 2\n# Test case 2:\nassert f(2) == 3\n[/TESTS]",
        "Sure!\n[TESTS]\nassert f(1) == 2\nassert f(2) == 3\n",  # the mark is not closed
        "```python\nassert f(1) == 2\nassert f(2) == 3\n```",
        "assert f(1) == 2\nassert f(2) == 3",
        "[TESTS]\nTest case 1:\nassert f(1) == 2\nTest case 2:\nassert f(2) == 3\n[/TESTS]",
        "[TESTS]\nassert f(1) == 2\nassert f(1) == 2\nimport os\nassert f(2) == 3\n[/TESTS]",
        "[TESTS]\nassert True\nassert f(1) == 2\nassert f(2) == 3\n[/TESTS] assert f(9)",
    ],
)
def test_both_spellings_and_all_marks_of_tests(answer):
    assert parsing.tests(answer) == (["assert f(1) == 2", "assert f(2) == 3"], "")


def test_an_assert_may_take_several_lines():
    answer = "[TESTS]\nassert f(\n    1\n) == 2\n[/TESTS]"
    assert parsing.tests(answer) == (["assert f(\n    1\n) == 2"], "")


@pytest.mark.parametrize("answer", ["", "no", "[TESTS]\n[/TESTS]", "x" * 30_000, "[TESTS]("])
def test_an_answer_without_tests_has_a_reason(answer):
    statements, reason = parsing.tests(answer)
    assert not statements
    assert reason in (parsing.NO_TESTS, programs.TOO_LONG)
