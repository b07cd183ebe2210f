"""Reads Python programs out of a model's answers.

A model writes anything: unclosed marks, megabytes, several blocks of code, other languages. Nothing
raises for an answer; what cannot be used comes back with a reason, which callers count.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_ANSWER = 20_000  # characters; no answer of a useful length has more
# A fenced block with its language and code. The first alternative skips code within a line.
FENCE = re.compile(
    r"```[^`\n]+```|```[ \t]*([A-Za-z0-9+#_-]*)[^`\n]*\n(.*?)(?:\n?```|\Z)", re.DOTALL
)
CLOSING_FENCE = re.compile(r"\n?```|\Z")
# Fences at which the end of a block is searched: a docstring with two examples holds four.
MOST_FENCES = 5
PYTHON_NAMES = ("", "python", "python3", "py")
# Marks around a program, in the prompts of Code Llama - Instruct.
OPEN, CLOSE = "[PYTHON]", "[/PYTHON]"

# Reasons for which an answer is not used.
TOO_LONG = "the answer is too long"
NO_CODE = "no code"
OTHER_LANGUAGE = "code of another language"
DOES_NOT_PARSE = "the code does not parse"
NO_FUNCTION = "no function"


class Parsed(NamedTuple):
    """The code of an answer, or the reason why there is none."""

    code: str = ""
    reason: str = ""


def program(answer: str, name: str = "") -> Parsed:
    """Returns the Python program of an answer, which defines at least one function.

    It is the text between [PYTHON] marks, else the first block of code that can be used, else the
    answer itself. A block that defines `name` at its top level comes before others.
    """
    if len(answer) > MAX_ANSWER:
        return Parsed(reason=TOO_LONG)
    # In the order of preference: the marked text first, then the fenced blocks as they are written.
    blocks = []
    marked = between(answer, OPEN, CLOSE)
    # Text that parses has fences in its docstrings and comments only: all of it is the program.
    unfenced = _usable(marked or answer)
    if unfenced.code:
        return unfenced
    if marked:
        # A model may put the fences of Markdown inside of the marks.
        blocks.append(_usable(first_block(marked) or marked))
    for language, code in _fenced(answer):
        is_python = language.lower() in PYTHON_NAMES
        blocks.append(_usable(code) if is_python else Parsed(reason=OTHER_LANGUAGE))
    usable = [parsed for parsed in blocks if parsed.code]
    # A model may show a usage example before the function that was requested.
    for parsed in usable:
        if name and defines(parsed.code, name):
            return parsed
    if blocks:
        return usable[0] if usable else blocks[0]
    return Parsed(reason=NO_CODE)


def nearest_program(answer: str, name: str) -> Parsed:
    """Returns the program of an answer as `program` does, or else the text that comes nearest.

    That text is run as well, so that a verdict names its fault; the reason is kept beside it.
    """
    parsed = program(answer, name)
    if parsed.code or parsed.reason == TOO_LONG:
        return parsed
    text = between(answer, OPEN, CLOSE) or answer
    return Parsed((first_block(text) or text).strip("\n") + "\n", parsed.reason)


def parse(source: str) -> ast.Module | None:
    """Returns the syntax tree of a program, None if it is not valid Python of any depth."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defines(source: str, name: str) -> bool:
    """Returns whether Python source defines a function or class of this name at its top level."""
    tree = parse(source)
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            return True
    return False


def between(answer: str, start: str, end: str) -> str:
    """Returns the text after the first mark, up to the closing one or the end of the answer."""
    _, mark, rest = answer.partition(start)
    return rest.partition(end)[0].strip("\n") if mark else ""


def first_block(answer: str) -> str:
    """Returns the first fenced block of code of any language, "" if there is none."""
    for _, code in _fenced(answer):
        return code
    return ""


def _fenced(answer: str) -> Iterator[tuple[str, str]]:
    """Yields the language, "" if there is none, and the code of each fenced block."""
    position = 0
    while match := FENCE.search(answer, position):
        position = match.end()
        if match.group(2) is None:
            continue
        language, code = match.group(1), match.group(2)
        if language.lower() in PYTHON_NAMES:
            code, position = _python_block(answer, match)
        yield language, code


def _python_block(answer: str, match: re.Match[str]) -> tuple[str, int]:
    """Returns the code of a block of Python that FENCE found, and where the block ends.

    The block ends at the first fence before which the code parses, if there is one among the first
    few: the docstring of a function may hold fences around an example.
    """
    start, first_end = match.span(2)
    for closing in itertools.islice(CLOSING_FENCE.finditer(answer, first_end), MOST_FENCES):
        code = answer[start : closing.start()]
        if parse(code.strip("\n")) is not None:
            return code, closing.end()
    return match.group(2), match.end()


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
