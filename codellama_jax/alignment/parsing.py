"""Reads questions and tests out of a model's answers; `benchmarks/programs.py` reads programs.

Nothing raises for an answer; what cannot be used comes back with a reason, which the stages count.
"""

from __future__ import annotations

import ast
import re

from codellama_jax.benchmarks.programs import MAX_ANSWER, TOO_LONG, between, first_block, parse

MAX_QUESTION = 2_000  # characters
# "12. text" or "12) text" at the start of a line.
NUMBERED = re.compile(r"^[ \t]{0,3}\d{1,4}[.)][ \t]+", re.MULTILINE)
NO_TESTS = "no tests"  # the reason for which an answer is not used


def questions(answer: str) -> list[str]:
    """Returns the questions of a numbered list, without the numbers, in one line each.

    Text before the first number is left out, and so are questions that are empty or longer than
    MAX_QUESTION characters. The last one of an answer that reached its limit of tokens may be
    incomplete; it is left out unless it ends like a sentence.
    """
    if len(answer) > MAX_ANSWER:
        return []
    starts = list(NUMBERED.finditer(answer))
    texts = []
    for index, match in enumerate(starts):
        end = starts[index + 1].start() if index + 1 < len(starts) else len(answer)
        # A blank line ends a question: a closing remark of the model may follow the list.
        text = answer[match.end() : end].strip().partition("\n\n")[0]
        texts.append(" ".join(text.split()))
    if texts and not texts[-1].endswith((".", "?", "!", ":", "`", ")")):
        texts.pop()
    return [text for text in texts if 0 < len(text) <= MAX_QUESTION]


def different(texts: list[str]) -> list[str]:
    """Returns texts without exact duplicates, in the order of their first occurrence."""
    return list(dict.fromkeys(texts))


def tests(answer: str) -> tuple[list[str], str]:
    """Returns the assert statements between [TESTS] marks, one text each, or a reason.

    Comments between them do not matter, and there may be any number of tests. Without marks the
    first block of code counts, and without one the answer itself. Statements other than asserts
    are left out, and so are asserts that call nothing: they would pass with any function.
    """
    if len(answer) > MAX_ANSWER:
        return [], TOO_LONG
    source = between(answer, "[TESTS]", "[/TESTS]") or first_block(answer) or answer
    statements = _asserts(source)
    if not statements:
        # One line that is not Python must not lose the others.
        for line in source.splitlines():
            statements += _asserts(line.strip())
    statements = different(statements)
    return (statements, "") if statements else ([], NO_TESTS)


def _asserts(source: str) -> list[str]:
    """Returns the assert statements of a source that call something; none if it is not Python."""
    tree = parse(source)
    statements = []
    for statement in tree.body if tree else ():
        if not isinstance(statement, ast.Assert):
            continue
        if any(isinstance(node, ast.Call) for node in ast.walk(statement.test)):
            statements.append(ast.get_source_segment(source, statement) or "")
    return [statement for statement in statements if statement]
