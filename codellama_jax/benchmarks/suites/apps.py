"""APPS: programming contests of three difficulties, two-shot, or zero-shot for Instruct models.

Hendrycks et al. 2021; Code Llama, tables 3 and 15.

The data has the published layout: one folder per problem, `test/0000/` and so on, with
question.txt, input_output.json and, if they exist, solutions.json, starter_code.py and
metadata.json. The solved examples of the prompt come from `train/` beside `test/`.

Code Llama describes its prompts and states that answers are in triple single quotes, but does not
publish the exact text, so results may differ from the paper's.

A sample passes if every test passes (strict accuracy). Outputs are compared line by line, without
surrounding space: integers must be equal, other numbers equal to a relative 1e-6.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from codellama_jax.benchmarks.benchmark import Benchmark, Check, Record, Task, passed, until
from codellama_jax.benchmarks.fields import (
    ANY,
    IDENTIFIER,
    LIST,
    TEXT,
    Kind,
    check_record,
    list_of,
    optional,
    or_null,
)
from codellama_jax.benchmarks.paper import Paper, crossed
from codellama_jax.benchmarks.settings import ShotOptions
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Program, Verdict
from codellama_jax.system.files import decode_text, parse_json, read_file, user_path

SHOTS = 2  # solved examples in the prompts of Code Llama
TIMEOUT = 4.0  # seconds per test
LONGEST_EXAMPLE = 3000  # characters of an example's question and solution
GRADES = ("introductory", "interview", "competition")
QUOTES = "'''"
INTEGER = re.compile(r"[+-]?[0-9]+")
STANDARD = "read from and write to standard IO"
CALL = "use the provided function signature"
# Problems with `fn_name` call a function; the others read standard input and print.
TESTS = {"fn_name": optional(or_null(IDENTIFIER))}
LINES = Kind("a string or a list", lambda value: TEXT.accepts(value) or isinstance(value, list))
STANDARD_TESTS = {"inputs": optional(list_of(LINES)), "outputs": optional(list_of(LINES))}
CALL_TESTS = {"inputs": optional(list_of(LIST)), "outputs": optional(list_of(ANY))}
# Code Llama, table 3.
PAPER = Paper(
    crossed(GRADES, ("pass@5", "pass@10", "pass@100")),
    """
        Code Llama 7B 10.8 15.6 33.5 2.0 3.1 9.4 0.8 1.4 7.1
        Code Llama 13B 23.7 30.2 49.0 5.6 8.1 18.4 2.1 3.4 12.0
        Code Llama 34B 32.8 39.0 56.3 8.8 12.2 24.3 2.9 4.7 15.4
        Code Llama Python 7B 12.7 18.5 38.3 4.2 6.3 14.9 1.3 2.2 9.1
        Code Llama Python 34B 28.9 35.9 54.9 7.8 11.1 23.9 3.5 5.5 16.8""",
)
# Table 15.
ZERO_SHOT = Paper(
    crossed(GRADES, ("pass@5", "pass@10", "pass@100")),
    """
        Code Llama Instruct 7B 24.9 29.4 41.3 6.3 8.4 16.1 1.9 3.0 9.2
        Code Llama Instruct 13B 24.8 29.8 43.5 7.0 9.2 17.3 1.7 2.5 6.3
        Code Llama Instruct 34B 19.8 25.9 43.5 5.7 8.0 16.9 1.5 2.3 6.4""",
)


def load(options: ShotOptions, tokenizer: object = None) -> Benchmark:
    """Returns the tasks of APPS from the folder `options.data`.

    Raises UserError if the folder has another layout, or too few examples.
    """
    # Some tests hold integers of 9,000 digits; by default Python converts at most 4,300.
    sys.set_int_max_str_digits(0)
    if not options.data:
        raise UserError(
            "pass --data, the folder of APPS, which holds test/ and, for examples, train/"
        )
    # A folder of problems, not one file, so `read_records` does not apply.
    root = Path(user_path(options.data))
    # The user may also name the folder test/ itself.
    root = root if os.path.isdir(root / "test") else root.parent
    if not os.path.isdir(root / "test"):
        layout = "test/ and, for examples, train/"
        raise UserError(f"--data {options.data} must be the folder of APPS, which holds {layout}")
    examples = _examples(root / "train", options.shots if options.shots >= 0 else SHOTS)
    tasks = [_task(_read(folder), examples) for folder in _folders(root / "test")]
    return Benchmark(
        "apps" if examples else "apps_zero_shot",
        tasks,
        # Code Llama uses 0.6 for APPS, and 0.8 elsewhere.
        temperature=0.6,
        truncate=until((QUOTES,)),
        checks=_checks,
        program_checks=_checks,
        paper=PAPER if examples else ZERO_SHOT,
        task_difference=options.difference(SHOTS, 0),
    )


def _folders(split: Path) -> list[Path]:
    return sorted(folder.parent for folder in split.glob("*/question.txt"))


def _read(folder: Path) -> Record:
    """Returns a problem from its folder.

    Raises UserError naming the file and field of the first fault.
    """
    file = folder / "input_output.json"
    tests = _read_json(file, {})
    check_record(tests, TESTS, str(file))
    # The two kinds of tests have inputs of different types.
    fields = CALL_TESTS if tests.get("fn_name") else STANDARD_TESTS
    check_record(tests, fields, str(file))
    inputs, outputs = len(tests.get("inputs", ())), len(tests.get("outputs", ()))
    if inputs != outputs:
        counts = f"{inputs} inputs and {outputs} outputs"
        raise UserError(f"{file} has {counts}: each input needs its output")
    solutions = _read_json(folder / "solutions.json", [])
    check_record({"solutions": solutions}, {"solutions": list_of(TEXT)}, str(folder))
    metadata = _read_json(folder / "metadata.json", {})
    check_record(metadata, {"difficulty": optional(TEXT)}, str(folder / "metadata.json"))
    return {
        "task_id": folder.name,
        "question": _read_text(folder / "question.txt"),
        "starter": _read_text(folder / "starter_code.py"),
        "tests": tests,
        "solutions": solutions,
        "difficulty": metadata.get("difficulty", ""),
    }


def _read_text(file: Path) -> str:
    text = decode_text(read_file(file), str(file)) if file.exists() else ""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_json(file: Path, empty: Any) -> Any:
    """Returns the value of a JSON file, `empty` if it does not exist or holds only space."""
    data = read_file(file) if file.exists() else b""
    return parse_json(data, str(file)) if data.strip() else empty


def _instruction(record: Record) -> str:
    """Returns the question with the instruction to write code."""
    guide = CALL if record["tests"].get("fn_name") else STANDARD
    starter = f"\n{record['starter'].rstrip()}" if record["starter"].strip() else ""
    # Answers end at the closing quotes, see `truncate` in `load`.
    wrapped = f"wrap your code answer in {QUOTES}"
    return (
        f"{record['question'].strip()}{starter}\nWrite Python code that obeys the constraints and "
        f"passes the examples: {guide}, {wrapped}."
    )


def _examples(split: Path, shots: int) -> str:
    """Returns the solved examples of the prompt: the first short problems of the training split.

    Problems with standard input and with a function alternate as long as the split has both.
    """
    if not shots:
        return ""
    standard: list[Record] = []
    call: list[Record] = []
    for folder in _folders(split):
        record = _read(folder)
        same_kind = call if record["tests"].get("fn_name") else standard
        if len(same_kind) < shots and _is_short(record):
            same_kind.append(record)
        if len(standard) == len(call) == shots:
            break
    chosen: list[Record] = []
    for pair in zip(standard, call):
        chosen += pair
    # The longer list continues alone.
    pairs = len(chosen) // 2
    chosen += standard[pairs:] + call[pairs:]
    if len(chosen) < shots:
        raise UserError(
            f"{split} has not {shots} short solved problems for the prompt: give APPS with its "
            "train/, or --shots 0"
        )
    examples = []
    for record in chosen[:shots]:
        solution = record["solutions"][0].strip()
        examples.append(f"Q: {_instruction(record)}\nA: {QUOTES}\n{solution}\n{QUOTES}\n\n")
    return "".join(examples)


def _is_short(record: Record) -> bool:
    """Returns whether a problem is solved and short enough for an example."""
    if not record["solutions"]:
        return False
    return len(record["question"]) + len(record["solutions"][0]) <= LONGEST_EXAMPLE


def _task(record: Record, examples: str) -> Task:
    if examples:
        prompt = f"{examples}Q: {_instruction(record)}\nA: {QUOTES}"
    else:
        prompt = f"[INST] {_instruction(record)} [/INST] {QUOTES}"
    reference = f"\n{record['solutions'][0].strip()}\n" if record["solutions"] else None
    return Task(
        record["task_id"], prompt, reference=reference, group=record["difficulty"], record=record
    )


def _checks(task: Task, completion: str) -> list[Check]:
    tests = task.record["tests"]
    pairs = list(zip(tests.get("inputs", ()), tests.get("outputs", ())))
    # A function without tests has no check, which would pass: it counts as without tests.
    if tests.get("fn_name") and pairs:
        return [_call(task, completion, tests["fn_name"], pairs)]
    # A program that reads standard input runs once for each input.
    return [_standard(task, completion, _text(stdin), _text(stdout)) for stdin, stdout in pairs]


def _standard(task: Task, completion: str, stdin: str, expected: str) -> Check:
    """Returns the check of a program by its output for one input."""

    def accepts(verdict: Verdict) -> bool:
        return passed(verdict) and same_output(verdict.stdout, expected)

    program = Program(task.task_id, "python", completion, TIMEOUT, stdin=stdin, rule="output")
    return Check(program, accepts)


def _call(task: Task, completion: str, name: str, pairs: list) -> Check:
    """Returns one check for all tests of the function `name`.

    The function may be a method of a class `Solution`, as on LeetCode. The expected value may be
    wrapped in a list, as in the published tests.
    """
    # Module-level code of the candidate, so it runs in the candidate's process.
    candidate = f"{completion}\nif 'Solution' in globals():\n    {name} = Solution().{name}\n"
    # Expected values come from JSON, so a tuple that the candidate returns must become a list.
    # JSON has texts as keys only: as in the published code, the keys of a dict that is the first
    # argument become integers again where all of them are.
    test = f"""
import json
def with_integers(value):
    try:
        return {{int(key): item for key, item in value.items()}}
    except ValueError:
        return value
def check(candidate):
    for arguments, wanted in json.loads({json.dumps(pairs)!r}):
        if arguments and isinstance(arguments[0], dict):
            arguments[0] = with_integers(arguments[0])
        value = json.loads(json.dumps(candidate(*arguments)))
        assert value == wanted or [value] == wanted
"""
    program = Program(
        task.task_id,
        "python",
        f"{candidate}\n{test}\ncheck({name})",
        # One program runs all tests of the function.
        TIMEOUT * max(1, len(pairs)),
        candidate=candidate,
        test=test,
        entry_point=name,
    )
    return Check(program)


def _text(value: Any) -> str:
    """Returns an input or output as text; some files hold a list of lines."""
    return value if isinstance(value, str) else "\n".join(map(str, value))


def same_output(written: str, expected: str) -> bool:
    """Returns whether two outputs have the same words in the same lines.

    Empty lines and spaces around words are ignored.
    """
    written_lines = _words_by_line(written)
    expected_lines = _words_by_line(expected)
    if len(written_lines) != len(expected_lines):
        return False
    for words, expected_words in zip(written_lines, expected_lines):
        if len(words) != len(expected_words) or not all(map(_same_word, words, expected_words)):
            return False
    return True


def _words_by_line(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("\n") if line.strip()]


def _same_word(written: str, expected: str) -> bool:
    """Returns whether two words are equal, or are two numbers that are close to each other."""
    if written == expected:
        return True
    # Long integers would be equal as floating-point numbers although digits differ.
    if INTEGER.fullmatch(written) and INTEGER.fullmatch(expected):
        # As numbers, since the published checker accepts 007 for 7. Not converted: that takes
        # seconds for the million digits that a program may print.
        return _digits(written) == _digits(expected)
    try:
        return math.isclose(float(written), float(expected), rel_tol=1e-6)
    except ValueError:
        return False


def _digits(integer: str) -> str:
    """Returns an integer in one form: without leading zeros, plus sign and the sign of zero."""
    digits = integer.lstrip("+-").lstrip("0")
    return f"-{digits}" if digits and integer.startswith("-") else digits


SUITE = Suite(load, ShotOptions)
