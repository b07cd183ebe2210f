"""Problems of programming contests for Codex-S: statements with hidden tests (Codex, section 4.1).

The paper takes 10,000 from training and interview sites, with tests rebuilt from the examples of
the statement or obtained by submitting wrong solutions; it publishes neither. Here they are JSON
lines with the fields of APPS' published records: `question`, `solutions`, a list of programs, and
`input_output`, {"inputs", "outputs"}, texts of the standard input and output. The last two may be
JSON in a string, as APPS has them. The statement is the docstring of a program; this form is ours.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from codellama_jax.alignment.problems import MAX_PROMPT, MAX_SOLUTION, Problem
from codellama_jax.benchmarks.fields import ANY, TEXT, check_record, list_of, optional
from codellama_jax.benchmarks.programs import parse
from codellama_jax.errors import UserError
from codellama_jax.system.files import parse_json, user_path
from codellama_jax.system.json_files import Value, read_values

FIELDS = {"question": TEXT, "solutions": ANY, "input_output": ANY}
LISTS = {"solutions": list_of(TEXT)}
TESTS = {"inputs": list_of(TEXT), "outputs": list_of(TEXT), "fn_name": optional(ANY)}
NO_TESTS: dict[str, list[str]] = {"inputs": [], "outputs": []}
QUOTES = '"""'


class Contest(NamedTuple):
    """A problem whose solution is a program, and its tests.

    Attributes:
        name: unique among the problems that are read together.
        problem: the statement as a docstring, and the first solution that can be used.
        examples: standard input and expected output of each test.
    """

    name: str
    problem: Problem
    examples: tuple[tuple[str, str], ...]


def read_contests(paths: Sequence[str], reasons: Counter[str]) -> list[Contest]:
    """Returns the problems of files, in their order; counts the reasons of those left out.

    Raises UserError naming the place and field of the first record of another form.
    """
    contests: list[Contest] = []
    seen: set[str] = set()
    for path in paths:
        for number, value in enumerate(read_values(user_path(path)).values):
            contest, reason = _contest(f"contest-{len(contests)}", number, value)
            if contest and contest.problem.prompt in seen:
                contest, reason = None, "it is a duplicate"
            if contest is None:
                reasons[f"contest: {reason}"] += 1
                continue
            seen.add(contest.problem.prompt)
            contests.append(contest)
    return contests


def content_of(contests: Sequence[Contest]) -> str:
    """Returns a hash of the contents of problems."""
    return hashlib.sha256(json.dumps(contests).encode()).hexdigest()


def _contest(name: str, number: int, value: Value) -> tuple[Contest | None, str]:
    """Returns the problem of a record, or the reason why it is none."""
    place, record = value
    check_record(record, FIELDS, place)
    solutions = _decoded(record["solutions"], [], f"{place}: solutions")
    check_record({"solutions": solutions}, LISTS, place)
    tests = _decoded(record["input_output"], NO_TESTS, f"{place}: input_output")
    check_record(tests, TESTS, f"{place}: input_output")
    if len(tests["inputs"]) != len(tests["outputs"]):
        counts = f"{len(tests['inputs'])} inputs and {len(tests['outputs'])} outputs"
        raise UserError(f"{place}: input_output has {counts}: each input needs its output")
    # APPS has a second kind of tests, calls of a named function, which standard input cannot reach.
    if tests.get("fn_name"):
        return None, "its tests call a function"
    if not tests["inputs"]:
        return None, "it has no tests"
    prompt = _docstring(record["question"])
    if len(prompt) > MAX_PROMPT:
        return None, "its statement is too long"
    usable = [text for text in solutions if text.strip() and len(text) <= MAX_SOLUTION]
    # A solution may be a Python 2 program, which does not parse.
    programs = [text for text in usable if parse(text)]
    if not programs:
        return None, "it has no solution that can be used"
    solution = programs[0].replace("\r\n", "\n").strip("\n") + "\n"
    problem = Problem(place, number, "", prompt, solution)
    return Contest(name, problem, tuple(zip(tests["inputs"], tests["outputs"]))), ""


def _decoded(field: Any, empty: Any, place: str) -> Any:
    """Returns a field, decoded if it is JSON in a string; a string without text is `empty`."""
    if not isinstance(field, str):
        return field
    return parse_json(field.encode(), place) if field.strip() else empty


def _docstring(question: str) -> str:
    """Returns the beginning of a program: its docstring."""
    text = question.replace("\r\n", "\n").strip()
    # Backslashes first: those that escape the quotes must not be doubled.
    escaped = text.replace("\\", "\\\\").replace(QUOTES, '\\"\\"\\"')
    return f"{QUOTES}\n{escaped}\n{QUOTES}\n"
