"""Reads questions and tests out of a model's answers; `benchmarks/programs.py` reads programs.

Nothing raises for an answer; what cannot be used comes back with a reason, which the stages count.
"""

from __future__ import annotations

import ast
import re

from codellama_jax.benchmarks.programs import MAX_ANSWER, TOO_LONG, between, first_block, parse

MAX_QUESTION = 2_000  # characters
SENTENCE_ENDS = (".", "?", "!", ":", "`", ")")
# "12. text" or "12) text" at the start of a line.
NUMBERED = re.compile(r"^[ \t]{0,3}\d{1,4}[.)][ \t]+", re.MULTILINE)
# Also "12 - text", "Question 12: text" and "Q12. text", or "Question 12" as a line. The number may
# be a heading, and in bold with or without the text.
MARKED = re.compile(
    r"^[ \t]{0,3}(?:#{1,6}[ \t]+)?(?P<open>\*\*)?"
    r"(?:\d{1,4}(?:[.)]|[ \t]+[-\u2013])(?P<close>\*\*)?[ \t]+"
    r"|(?:question|problem|task|exercise|q)[ \t]*#?\d{1,4}"
    r"(?:[.):](?P<close_word>\*\*)?[ \t]+|[.):]?(?P<close_line>\*\*)?[ \t]*$))",
    re.MULTILINE | re.IGNORECASE,
)
BULLET = re.compile(r"^[ \t]{0,3}[-*+\u2022][ \t]+", re.MULTILINE)
# Not the operator of `2**3`.
BOLD = re.compile(r"(?<!\w)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\w)", re.DOTALL)
# The first words of a task that is neither numbered nor a question.
TASK = re.compile(
    r"(?:write|implement|create|define|develop|design|given|find|return|compute|calculate|count"
    r"|check|determine|convert|reverse|sort|merge|remove)\b",
    re.IGNORECASE,
)
NO_TESTS = "no tests"  # the reason for which an answer is not used


def questions(answer: str) -> list[str]:
    """Returns the questions of a list, without numbers, bullets and bold marks, in one line each.

    It is a numbered list in any usual spelling, else one with bullets, else at least two lines that
    each are a question or begin like a task. Text before the list is left out, and so are questions
    that are empty or longer than MAX_QUESTION characters. The last one of an answer that reached
    its limit of tokens may be incomplete; it is left out unless it ends like a sentence.
    """
    if len(answer) > MAX_ANSWER:
        return []
    starts: list[re.Match] = []
    for form in (NUMBERED, MARKED, BULLET):
        starts = starts or list(form.finditer(answer))
    texts = []
    for index, match in enumerate(starts):
        end = starts[index + 1].start() if index + 1 < len(starts) else len(answer)
        marks = match.groupdict()
        is_open = marks.get("open") and not any(marks[name] for name in marks if name != "open")
        texts.append(_question(("**" if is_open else "") + answer[match.end() : end].strip()))
    if not starts:
        lines = [line.strip() for line in answer.splitlines()]
        texts = [line for line in lines if line.endswith("?") or TASK.match(line)]
        texts = texts if len(texts) > 1 else []
    if texts and not texts[-1].endswith(SENTENCE_ENDS):
        texts.pop()
    return [text for text in texts if 0 < len(text) <= MAX_QUESTION]


def is_numbered(answer: str) -> bool:
    """Returns whether an answer has a list with plain numbers."""
    return bool(NUMBERED.search(answer))


def _question(item: str) -> str:
    """Returns an item of a list as one line."""
    # A blank line ends a question: a closing remark of the model may follow the list. Only a title
    # belongs to the paragraph below it.
    first, _, rest = item.partition("\n\n")
    if rest and (first.endswith(":") or BOLD.fullmatch(first.strip())):
        second, _, _ = rest.strip().partition("\n\n")
        first += f" {second}"
    return " ".join(BOLD.sub(r"\1", first).split())


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
