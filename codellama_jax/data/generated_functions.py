"""A generated family of functions on lists and texts, which a toy model can learn to write.

Each function is a few operations, one after the other. It has a question of one sentence, a
solution of one line per operation, and tests. No other data is at the scale of a model of a million
parameters: it solves none of HumanEval's problems, and some of these.

Functions that return the same on all of INPUTS are one function: only the first is kept, so that no
held-out function is a training one in other words. Everything is the same on every machine.

The corpora, by their name in a `CorpusConfig`:

    functions:records    the training functions as the documents that self-instruct asks for: a list
                         of questions; tests of a question; the solution of a question with a test
    functions:programs   the questions as docstrings, each followed by its solution
    functions:questions  conversations: a question and its solution; SHOWN functions of the family
    functions:held_out   the held-out functions as `functions:programs` has the others, for probes
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

HELD_OUT = 0.15  # share of the functions that no corpus for training holds
LENGTHS = (1, 2, 3)  # operations of a function
CANDIDATES = 1_500  # combinations of operations of which the family is made
TESTS = 2  # of a function in the records
LONGEST = 2  # items of a list, or characters, in the arguments of these tests
TASK_TESTS = 4  # of a task, by which answers are ranked
SHOWN = 48  # functions in the conversations
LISTED = 3  # questions of a list in the records
COPIES = 8  # of a function in the records, each with other tests

# Prompts of the records. Their answers follow in the documents.
ASK_QUESTIONS = "List {count} questions."
ASK_TESTS = "Tests: {question}"
ASK_SOLUTION = "{question}\n{test}"

NAME = "f"  # of every function: a question without tests must determine its tests
INPUTS: dict[str, tuple[Any, ...]] = {
    "items": ([], [5], [3, 1], [2, 2, 7], [4, 9, 1, 6], [8, 3, 5, 3, 0], [1, 2, 4, 6, 9, 7]),
    "text": ("", "a", "a1", "7b", "b2a", "a3b4", "b5c6a", "c7a8a9"),
}


class Operation(NamedTuple):
    """A step of a function: the words of the question, and its value as a Python expression."""

    words: str
    code: str


class Function(NamedTuple):
    """A function of the family."""

    argument: str  # a key of INPUTS
    question: str
    steps: tuple[str, ...]  # the expressions of the solution, in order
    solution: str  # a Python function, with a newline at its end

    def arguments(self, rng: random.Random, count: int, longest: int) -> list[Any]:
        """Returns different arguments of at most `longest` items or characters."""
        arguments: dict[str, Any] = {}
        while len(arguments) < count:
            argument = _argument(self.argument, rng, longest)
            # Lists are not hashable, hence the text of the argument as the key.
            arguments.setdefault(repr(argument), argument)
        return list(arguments.values())

    def test(self, argument: Any) -> str:
        """Returns the assert statement about an argument."""
        return f"assert {NAME}({argument!r}) == {self.values(argument)[-1]!r}"

    def values(self, argument: Any) -> list[Any]:
        """Returns the argument and the value after each step."""
        values = [argument]
        for step in self.steps:
            # Only the expressions of STEPS and ENDS are evaluated, never text of a model.
            values.append(eval(step, {self.argument: values[-1]}))
        return values

    def call(self) -> Any:
        """Returns the function itself."""
        namespace: dict[str, Any] = {}
        exec(self.solution, namespace)
        return namespace[NAME]


# Operations whose value is of the type of their argument, and those that end a function.
STEPS = {
    "items": (
        Operation("adds 1", "[i + 1 for i in items]"),
        Operation("doubles", "[i * 2 for i in items]"),
        Operation("reverses", "items[::-1]"),
        Operation("sorts", "sorted(items)"),
        Operation("appends 5", "items + [5]"),
        Operation("prepends 0", "[0] + items"),
        Operation("drops the first", "items[1:]"),
        Operation("drops the last", "items[:-1]"),
        Operation("keeps those above 4", "[i for i in items if i > 4]"),
        Operation("repeats", "items + items"),
    ),
    "text": (
        Operation("reverses", "text[::-1]"),
        Operation("capitalizes", "text.upper()"),
        Operation("appends x", "text + 'x'"),
        Operation("prepends y", "'y' + text"),
        Operation("removes a", "text.replace('a', '')"),
        Operation("drops the first", "text[1:]"),
        Operation("drops the last", "text[:-1]"),
        Operation("repeats", "text + text"),
    ),
}
ENDS = {
    "items": (Operation("sums", "sum(items)"), Operation("counts", "len(items)")),
    "text": (Operation("counts", "len(text)"), Operation("counts a", "text.count('a')")),
}
NOUNS = {"items": "list", "text": "text"}


@cache
def family(seed: int = 0) -> tuple[Function, ...]:
    """Returns the functions, which differ on INPUTS, in a pseudo-random order."""
    rng = random.Random(seed)
    chains = [*_chains("items"), *_chains("text")]
    rng.shuffle(chains)
    # Short ones first: of equal functions the shortest is kept.
    chains.sort(key=_length)
    functions: dict[str, Function] = {}
    # The sort is stable, so that functions of one length are still in pseudo-random order, and the
    # family is a random part of the long ones.
    for argument, steps in chains[:CANDIDATES]:
        function = _function(argument, steps)
        functions.setdefault(behaviour(function), function)
    chosen = list(functions.values())
    rng.shuffle(chosen)
    return tuple(chosen)


def behaviour(function: Function) -> str:
    """Returns the values of a function on INPUTS, by which it is recognized."""
    call = function.call()
    return repr([function.argument, *(call(value) for value in INPUTS[function.argument])])


def asked_by(question: str) -> Function | None:
    """Returns the function that a question asks for, None for one in other words."""
    start, _, words = question.strip().removesuffix(".").partition(": ")
    for argument, noun in NOUNS.items():
        if start != f"Write {NAME} of a {noun}":
            continue
        operations = {step.words: step for step in (*STEPS[argument], *ENDS[argument])}
        steps = [operations.get(part) for part in words.split(", ")]
        known = tuple(step for step in steps if step is not None)
        # An operation that ends a function, such as "sums", returns a number, to which no list
        # operation applies. So it may only come last.
        is_chain = len(known) == len(steps) and not set(known[:-1]) & set(ENDS[argument])
        return _function(argument, known) if is_chain else None
    return None


def is_held_out(function: Function) -> bool:
    """Returns whether no corpus for training holds a function."""
    # By behaviour, not by question: two functions that return the same are on the same side.
    digest = hashlib.sha256(behaviour(function).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def training() -> list[Function]:
    """Returns the functions of the corpora."""
    return [function for function in family() if not is_held_out(function)]


def held_out() -> list[Function]:
    """Returns the functions on which models are evaluated."""
    return [function for function in family() if is_held_out(function)]


def asks_for_held_out(question: str) -> bool:
    """Returns whether a question, which a model may have written, asks for a held-out function."""
    function = asked_by(question)
    return function is not None and is_held_out(function)


def tasks() -> Iterator[tuple[Function, list[str]]]:
    """Yields the training functions with tests, for models to answer."""
    for function in training():
        yield function, hidden_tests(function, TASK_TESTS)


def hidden_tests(function: Function, count: int) -> list[str]:
    """Returns tests with longer arguments than the records have, the same in every call."""
    rng = random.Random(function.question)
    return [function.test(argument) for argument in function.arguments(rng, count, 5)]


def _length(chain: tuple[str, tuple[Operation, ...]]) -> int:
    return len(chain[1])


def _chains(argument: str) -> Iterator[tuple[str, tuple[Operation, ...]]]:
    """Yields the operations of every function of an argument."""
    for length in LENGTHS:
        for steps in itertools.product(STEPS[argument], repeat=length - 1):
            for last in (*STEPS[argument], *ENDS[argument]):
                yield argument, (*steps, last)


def _function(argument: str, steps: tuple[Operation, ...]) -> Function:
    words = ", ".join(step.words for step in steps)
    question = f"Write {NAME} of a {NOUNS[argument]}: {words}."
    lines = [f"def {NAME}({argument}):"]
    for step in steps[:-1]:
        lines.append(f"    {argument} = {step.code}")
    lines.append(f"    return {steps[-1].code}")
    codes = tuple(step.code for step in steps)
    return Function(argument, question, codes, "".join(f"{line}\n" for line in lines))


def _argument(kind: str, rng: random.Random, longest: int) -> Any:
    """Returns an argument whose digits and letters are single tokens: they alternate in a text."""
    length = rng.randint(1, longest)
    if kind == "items":
        return [rng.randint(0, 9) for _ in range(length)]
    return "".join(rng.choice(("abc", "0123456789")[i % 2]) for i in range(length))


def records() -> Iterator[str]:
    """Yields the texts of `functions:records`."""
    rng = random.Random("records")
    functions = training()
    for _ in range(COPIES):
        rng.shuffle(functions)
        # The incomplete list at the end is left out: every list has LISTED questions.
        for start in range(0, len(functions) - LISTED + 1, LISTED):
            questions = [function.question for function in functions[start : start + LISTED]]
            answer = "\n".join(f"{number}. {q}" for number, q in enumerate(questions, 1))
            yield document(ASK_QUESTIONS.format(count=LISTED), answer)
        for function in functions:
            arguments = function.arguments(rng, TESTS, LONGEST)
            yield document(
                ASK_TESTS.format(question=function.question), _tests(function, arguments)
            )
            test = function.test(rng.choice(arguments))
            prompt = ASK_SOLUTION.format(question=function.question, test=test)
            yield document(prompt, function.solution)


def _tests(function: Function, arguments: list[Any]) -> str:
    """Returns tests, each below a comment with the value after every step.

    Without the steps a toy model does not find the value.
    """
    lines = []
    for argument in arguments:
        steps = "; ".join(repr(value) for value in function.values(argument))
        lines += [f"# {steps}", function.test(argument)]
    return "\n".join(lines)


def programs() -> Iterator[str]:
    """Yields the texts of `functions:programs`."""
    for function in training():
        yield document(function.question, function.solution)


def held_out_programs() -> Iterator[str]:
    """Yields the texts of `functions:held_out`."""
    for function in held_out():
        yield document(function.question, function.solution)


def conversations() -> Iterator[str]:
    """Yields the texts of `functions:questions`, as training reads conversations."""
    for function in training()[:SHOWN]:
        answer = f"[PYTHON]\n{function.solution}[/PYTHON]"
        messages = [
            {"role": "user", "content": function.question},
            {"role": "assistant", "content": answer},
        ]
        yield json.dumps({"messages": messages})


def document(prompt: str, answer: str) -> str:
    """Returns a document in the form of the chat format pangu_coder2."""
    return f'"""{prompt}"""\n{answer}'


CORPORA: dict[str, Callable[[], Iterator[str]]] = {
    "functions:records": records,
    "functions:programs": programs,
    "functions:questions": conversations,
    "functions:held_out": held_out_programs,
}
