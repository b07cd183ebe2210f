"""The prompts of self-instruct (Code Llama, section 2.5 and appendix H).

The structure is the paper's: a list of interview questions, a one-shot prompt for tests between
[TESTS] marks, a one-shot prompt for a solution between [PYTHON] marks. The wording is ours.

A toy model reads no instructions: its prompts are those of data/generated_functions.py, which it
was trained to continue.
"""

from __future__ import annotations

from typing import NamedTuple

from codellama_jax.data import generated_functions
from codellama_jax.tokenizers.chat import Message

QUESTIONS = """\
List {count} questions for a programming interview, numbered from 1.
Each must be solvable with one Python function that needs nothing but the standard library and no
other function. Mix easy and medium difficulty and many different topics. Do not repeat a question.
State each question in one paragraph, without an example and without its solution."""

TESTS = """\
Write 5 tests for the Python function that a task asks for. Each test is one line with an assert
statement that calls the function, below a comment "#Test case n:". Put all tests between [TESTS]
and [/TESTS]. Do not write the function.

Task: Write a function that returns the different items of a list in the order in which they first
occur.
[TESTS]
# Test case 1:
assert different_items([]) == []
# Test case 2:
assert different_items([4, 4, 1]) == [4, 1]
# Test case 3:
assert different_items(["b", "a", "b"]) == ["b", "a"]
[/TESTS]

Task: {question}"""

SOLUTION = """\
Solve a task with one Python function. It must pass the given test. Put the code between [PYTHON]
and [/PYTHON], with the imports it needs and without tests.

Task: Write a function that returns the different items of a list in the order in which they first
occur.
Test: assert different_items([4, 4, 1]) == [4, 1]
[PYTHON]
def different_items(items):
    return list(dict.fromkeys(items))
[/PYTHON]

Task: {question}
Test: {test}"""


class Prompts(NamedTuple):
    """The prompts of the three steps, as texts with names in braces."""

    questions: str  # {count}
    tests: str  # {question}
    solution: str  # {question} and {test}

    def ask_for_questions(self, count: int) -> list[Message]:
        """Returns the conversation that asks for a numbered list of questions."""
        return [Message("user", self.questions.format(count=count))]

    def ask_for_tests(self, question: str) -> list[Message]:
        """Returns the conversation that asks for the tests of a question."""
        return [Message("user", self.tests.format(question=question))]

    def ask_for_solution(self, question: str, test: str) -> list[Message]:
        """Returns the conversation that asks for a solution, given one of the tests."""
        return [Message("user", self.solution.format(question=question, test=test))]


PAPER = Prompts(QUESTIONS, TESTS, SOLUTION)
TOY = Prompts(
    generated_functions.ASK_QUESTIONS,
    generated_functions.ASK_TESTS,
    generated_functions.ASK_SOLUTION,
)
STYLES = {"paper": PAPER, "toy": TOY}
