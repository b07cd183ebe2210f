"""Reads questions, tests and programs out of a model's answers.

A model writes anything: unclosed marks, megabytes, several blocks of code, other languages. Nothing
raises for an answer; what cannot be used comes back with a reason, which the stages count.
"""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

MAX_ANSWER = 20_000  # characters; no answer of a useful length has more
MAX_QUESTION = 2_000
# "12. text" or "12) text" at the start of a line.
NUMBERED = re.compile(r"^[ \t]{0,3}\d{1,4}[.)][ \t]+", re.MULTILINE)
FENCE = re.compile(r"```[ \t]*([A-Za-z0-9+#_-]*)[^\n]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
PYTHON_NAMES = ("", "python", "python3", "py")

# Reasons for which an answer is not used.
TOO_LONG = "the answer is too long"
NO_CODE = "no code"
OTHER_LANGUAGE = "code of another language"
DOES_NOT_PARSE = "the code does not parse"
NO_FUNCTION = "no function"
NO_TESTS = "no tests"


class Parsed(NamedTuple):
    """The code of an answer, or the reason why there is none."""

    code: str = ""
    reason: str = ""


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
    source = _between(answer, "[TESTS]", "[/TESTS]") or _first_block(answer) or answer
    statements = _asserts(source)
    if not statements:
        # One line that is not Python must not lose the others.
        for line in source.splitlines():
            statements += _asserts(line.strip())
    statements = different(statements)
    return (statements, "") if statements else ([], NO_TESTS)


def program(answer: str) -> Parsed:
    """Returns the Python program of an answer, which defines at least one function.

    It is the text between [PYTHON] marks, else the first block of code that can be used, else the
    answer itself.
    """
    if len(answer) > MAX_ANSWER:
        return Parsed(reason=TOO_LONG)
    marked = _between(answer, "[PYTHON]", "[/PYTHON]")
    if marked:
        # A model may put the fences of Markdown inside of the marks.
        return _usable(_first_block(marked) or marked)
    blocks = list(FENCE.finditer(answer))
    reasons = []
    for block in blocks:
        language, code = block.group(1).lower(), block.group(2)
        parsed = _usable(code) if language in PYTHON_NAMES else Parsed(reason=OTHER_LANGUAGE)
        if parsed.code:
            return parsed
        reasons.append(parsed.reason)
    if reasons:
        return Parsed(reason=reasons[0])
    parsed = _usable(answer)
    return parsed if parsed.code else Parsed(reason=NO_CODE)


def parse(source: str) -> ast.Module | None:
    """Returns the syntax tree of a program, None if it is not valid Python of any depth."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _usable(code: str) -> Parsed:
    code = code.strip("\n")
    if not code.strip():
        return Parsed(reason=NO_CODE)
    tree = parse(code)
    if tree is None:
        return Parsed(reason=DOES_NOT_PARSE)
    functions = (ast.FunctionDef, ast.ClassDef)
    if not any(isinstance(statement, functions) for statement in tree.body):
        return Parsed(reason=NO_FUNCTION)
    return Parsed(code + "\n")


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


def _between(answer: str, start: str, end: str) -> str:
    """Returns the text after the first mark, up to the closing one or the end of the answer."""
    _, mark, rest = answer.partition(start)
    return rest.partition(end)[0].strip("\n") if mark else ""


def _first_block(answer: str) -> str:
    match = FENCE.search(answer)
    return match.group(2) if match else ""
