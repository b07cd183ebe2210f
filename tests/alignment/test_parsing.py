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
        ("I am sorry.\nI cannot write questions.", []),
        ("What would you like?", []),  # one question to the user is no list
        ("1.1.1\nVersion 2.0", []),
    ],
)
def test_answers_without_the_list_lose_only_what_is_broken(answer, expected):
    assert parsing.questions(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "1. Add 2**3 to x.\n2. Sort a list?",
        "1) Add 2**3 to x.\n\n2) Sort a list?\n\nEnjoy!",
        "1 - Add 2**3 to x.\n2 - Sort a list?",
        "Sure:\n- Add 2**3 to x.\n- Sort a list?",
        "* Add 2**3 to x.\n* Sort a list?\n",
        "+ Add 2**3\n  to x.\n+ **Sort a list?**",
        "\N{BULLET} Add 2**3 to x.\n\N{BULLET} Sort a list?",
        "**1.** Add 2**3 to x.\n**2.** Sort a list?",
        "**1. Add 2**3 to x.**\n\n**2. Sort a list?**",
        "1. **Add 2**3 to x.**\n2. **Sort** a list?",
        "Question 1: Add 2**3 to x.\n\nQuestion 2: Sort a list?\n\nUse a function.",
        "**Question 1:** Add 2**3 to x.\n**Question 2:** Sort a list?",
        "Q1. Add 2**3 to x.\nQ2. Sort a list?",
        "### Problem 1\n\nAdd 2**3 to x.\n\n### Problem 2\n\nSort a list?",
        "## 1. Add 2**3 to x.\n## 2. Sort a list?",
        "Here are two:\n\nWrite: add 2**3 to x.\nSort a list?",
    ],
)
def test_every_usual_spelling_of_a_list(answer):
    first, second = parsing.questions(answer)
    assert first.removeprefix("Write: ").capitalize() == "Add 2**3 to x."
    assert second == "Sort a list?"


def test_plain_numbers_come_before_other_marks():
    answer = "1. Solve:\n- a;\n- b.\nQuestion 7: c?\n2. Sort a list?"
    assert parsing.questions(answer) == ["Solve: - a; - b. Question 7: c?", "Sort a list?"]
    assert parsing.is_numbered(answer) and not parsing.is_numbered("**1.** Sort.")


def test_a_title_belongs_to_the_paragraph_below_it():
    answer = "1. **Two Sum**\n\n   Given a list, find two.\n\n   Hint.\n2. Next:\n\nDo it."
    assert parsing.questions(answer) == ["Two Sum Given a list, find two.", "Next: Do it."]


def test_questions_of_a_small_chat_model():
    # As SmolLM2-135M-Instruct wrote them.
    listed = "\n\n".join(f"Question {n}: What do you do with a wolf {n}?" for n in range(1, 11))
    answer = f"{listed}\n\nTo answer each question with an example, choose a Python function."
    assert len(parsing.questions(answer)) == 10
    assert not parsing.questions("**1. [Harder, less] **\n\nQuestion: 1. [Harder, less, less]")


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
