"""Programming contests in three grades: APPS, two-shot, or zero-shot for Instruct models.

Hendrycks et al. 2021; Code Llama, tables 3 and 15.

The published layout: `test/0000/` and on, with question.txt, input_output.json, and where there are
any solutions.json, starter_code.py and metadata.json; the examples of the prompt come from `train/`
beside it. Code Llama says of its prompts what they ask and that answers stand in triple single
quotes, but not their words. A sample passes if every test does (strict accuracy); outputs are
compared line by line without surrounding space, whole numbers digit by digit and others to a
relative 1e-6.
"""

from __future__ import annotations

import json
import math
import os
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
from codellama_jax.sandbox import Program
from codellama_jax.system.files import decode_text, parse_json, read_file, user_path

TIMEOUT = 4.0  # a test
LONGEST_EXAMPLE = 3000  # characters
GRADES = ("introductory", "interview", "competition")
QUOTES = "'''"
STANDARD = "read from and write to standard IO"
CALL = "use the provided function signature"
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
    """Returns the tasks of APPS (Hendrycks et al. 2021): programs that read and print text."""
    # Some tests hold numbers of 9,000 digits; JSON reads 4,300 at most unless this is off.
    sys.set_int_max_str_digits(0)
    if not options.data:
        raise UserError(
            "pass --data, the folder of APPS, which holds test/ and, for examples, train/"
        )
    root = Path(user_path(options.data))
    root = root if os.path.isdir(root / "test") else root.parent
    if not os.path.isdir(root / "test"):
        layout = "test/ and, for examples, train/"
        raise UserError(f"--data {options.data} must be the folder of APPS, which holds {layout}")
    examples = _examples(root / "train", options.shots if options.shots >= 0 else 2)
    tasks = [_task(_read(folder), examples) for folder in _folders(root / "test")]
    return Benchmark(
        "apps" if examples else "apps_zero_shot",
        tasks,
        temperature=0.6,
        cut=until((QUOTES,)),
        checks=_checks,
        program_checks=_checks,
        paper=PAPER if examples else ZERO_SHOT,
    )


def _folders(split: Path) -> list[Path]:
    return sorted(folder.parent for folder in split.glob("*/question.txt"))


def _read(folder: Path) -> Record:
    """Returns a problem. Raises UserError naming the file and field of the first fault."""
    file = folder / "input_output.json"
    tests = _read_json(file, {})
    check_record(tests, TESTS, str(file))
    fields = CALL_TESTS if tests.get("fn_name") else STANDARD_TESTS
    check_record(tests, fields, str(file))
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
    """Returns a file's value, `empty` where there is no file or nothing in it."""
    data = read_file(file) if file.exists() else b""
    return parse_json(data, str(file)) if data.strip() else empty


def _asked(record: Record) -> str:
    guide = CALL if record["tests"].get("fn_name") else STANDARD
    starter = f"\n{record['starter'].rstrip()}" if record["starter"].strip() else ""
    wrapped = f"wrap your code answer in {QUOTES}"
    return (
        f"{record['question'].strip()}{starter}\nWrite Python code that obeys the constraints and "
        f"passes the examples: {guide}, {wrapped}."
    )


def _examples(split: Path, shots: int) -> str:
    """Returns the first short problems of the training split, of both kinds in turn where it has
    both.
    """
    found: dict[bool, list[Record]] = {False: [], True: []}
    for folder in _folders(split) if shots else ():
        record = _read(folder)
        kind = found[bool(record["tests"].get("fn_name"))]
        if (
            record["solutions"]
            and len(record["question"] + record["solutions"][0]) <= LONGEST_EXAMPLE
            and len(kind) < shots
        ):
            kind.append(record)
        if all(len(kind) == shots for kind in found.values()):
            break
    mixed = [record for pair in zip(*found.values()) for record in pair]
    chosen = [*mixed, *(r for kind in found.values() for r in kind if r not in mixed)][:shots]
    if len(chosen) < shots:
        raise UserError(
            f"{split} has not {shots} short solved problems for the prompt: give APPS with its "
            "train/, or --shots 0"
        )
    return "".join(
        f"Q: {_asked(record)}\nA: {QUOTES}\n{record['solutions'][0].strip()}\n{QUOTES}\n\n"
        for record in chosen
    )


def _task(record: Record, examples: str) -> Task:
    prompt = (
        f"{examples}Q: {_asked(record)}\nA: {QUOTES}"
        if examples
        else f"[INST] {_asked(record)} [/INST] {QUOTES}"
    )
    reference = f"\n{record['solutions'][0].strip()}\n" if record["solutions"] else None
    return Task(
        record["task_id"], prompt, reference=reference, group=record["difficulty"], record=record
    )


def _checks(task: Task, completion: str) -> list[Check]:
    tests = task.record["tests"]
    pairs = list(zip(tests.get("inputs", ()), tests.get("outputs", ())))
    if tests.get("fn_name"):
        return [_call(task, completion, tests["fn_name"], pairs)]
    return [_standard(task, completion, _text(given), _text(wanted)) for given, wanted in pairs]


def _standard(task: Task, completion: str, given: str, wanted: str) -> Check:
    accepts = lambda verdict: passed(verdict) and same_output(verdict.stdout, wanted)
    return Check(
        Program(task.task_id, "python", completion, TIMEOUT, stdin=given, rule="output"), accepts
    )


def _call(task: Task, completion: str, name: str, pairs: list) -> Check:
    """One program for all tests of a function, which may be a method of `Solution`."""
    candidate = f"{completion}\nif 'Solution' in globals():\n    {name} = Solution().{name}\n"
    test = f"""
import json
def check(candidate):
    for arguments, wanted in json.loads({json.dumps(pairs)!r}):
        value = json.loads(json.dumps(candidate(*arguments)))
        assert value == wanted or [value] == wanted
"""
    code = f"{candidate}\n{test}\ncheck({name})"
    timeout = TIMEOUT * max(1, len(pairs))
    return Check(
        Program(
            task.task_id, "python", code, timeout, candidate=candidate, test=test, entry_point=name
        )
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value))


def same_output(written: str, wanted: str) -> bool:
    """Whether two outputs say the same."""
    lines = lambda text: [line.split() for line in text.strip().split("\n") if line.strip()]
    a, b = lines(written), lines(wanted)
    return len(a) == len(b) and all(
        len(x) == len(y) and all(map(_same_word, x, y)) for x, y in zip(a, b)
    )


def _same_word(a: str, b: str) -> bool:
    whole = all(word.lstrip("+-").isdigit() for word in (a, b))
    try:
        return a == b or (not whole and math.isclose(float(a), float(b), rel_tol=1e-6))
    except ValueError:
        return False


SUITE = Suite(load, ShotOptions)
