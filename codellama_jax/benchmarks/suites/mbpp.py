"""MBPP (Austin et al. 2021).

A Python function from a sentence and three asserts; 3-shot, or 0-shot for Instruct models.

Tasks 2, 3 and 4 are the examples and 11 to 510 the test split, as its authors say. Code Llama's own
examples are not published.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from codellama_jax.benchmarks.benchmark import Benchmark, Check, Record, Task, read_records, until
from codellama_jax.benchmarks.fields import INTEGER, TEXT, WORD, list_of, optional
from codellama_jax.benchmarks.paper import PASS, Paper
from codellama_jax.benchmarks.settings import ShotOptions, described
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Program

EXAMPLES = (2, 3, 4)
TEST = range(11, 511)
OWN_TASKS = "the papers' numbers are those of the test split, and --all-tasks was given"
BEGIN, DONE = "[BEGIN]\n", "\n[DONE]"
OPEN, CLOSE = "[PYTHON]", "[/PYTHON]"
ASKED = (
    "You are an expert Python programmer, and here is your task: {} "
    "Your code should pass these tests:\n\n{}\n"
)
FIELDS = {
    "task_id": INTEGER,
    "code": TEXT,
    "test_list": list_of(WORD, least=1),
    "text": optional(TEXT),
    "prompt": optional(TEXT),
    "test_imports": optional(list_of(TEXT)),
    "test_setup_code": optional(TEXT),
}
# BigCode's harness allows 3.0, in which the published solution of task 123 does not always come to
# its end
TIMEOUT = 10.0
# Code Llama, table 2.
PAPER = Paper(
    PASS,
    """
        Llama 2 7B 20.8 41.8 65.5
        Code Llama 7B 41.4 66.7 82.5
        Code Llama 13B 47.0 71.7 87.1
        Code Llama 34B 55.0 76.2 86.6
        Code Llama 70B 62.4 81.1 91.9
        Code Llama Instruct 7B 44.4 65.4 76.8
        Code Llama Python 7B 47.6 70.3 84.8
        Code Llama Python 34B 56.2 76.4 88.2""",
)
# Table 8.
ZERO_SHOT = Paper(
    ("pass@1",),
    """
        Code Llama Instruct 7B 37.4
        Code Llama Instruct 13B 40.2""",
)


@dataclass(frozen=True)
class MbppOptions(ShotOptions):
    """Options of MBPP."""

    all_tasks: Annotated[bool, described("All tasks, not only the test split.")] = False


def load(options: MbppOptions, tokenizer: object = None) -> Benchmark:
    """Returns the tasks of MBPP (Austin et al. 2021), complete or sanitized."""
    records = [_unix(record) for record in read_records(options.data, FIELDS)]
    if options.shots > len(EXAMPLES):
        message = f"--shots must be at most {len(EXAMPLES)} for mbpp, whose examples are tasks"
        raise UserError(f"{message} {', '.join(map(str, EXAMPLES))}; not {options.shots}")
    shots = EXAMPLES[: options.shots] if options.shots >= 0 else EXAMPLES
    by_id = {record["task_id"]: record for record in records}
    lacking = [number for number in shots if number not in by_id]
    if lacking:
        raise UserError(
            f"{options.data} lacks task {lacking[0]}, an example of the prompt: give the whole "
            "file, or --shots 0"
        )
    examples = "".join(
        f"{_asked(by_id[number])}{BEGIN}{by_id[number]['code']}{DONE}\n\n" for number in shots
    )
    tasks = [
        _task(record, examples)
        for record in records
        if options.all_tasks or record["task_id"] in TEST
    ]
    cut = until((DONE,)) if shots else until((CLOSE,))
    return Benchmark(
        "mbpp" if shots else "mbpp_zero_shot",
        tasks,
        cut=cut,
        finish=_finish,
        checks=_checks,
        program_checks=_checks,
        paper=PAPER if shots else ZERO_SHOT,
        own_tasks=OWN_TASKS if options.all_tasks else "",
    )


def _unix(record: Record) -> Record:
    """The file's code has the line ends of two systems.

    Its newer format names the text `prompt`.
    """
    record = {**record, "text": record.get("text") or record.get("prompt", "")}
    record["code"] = record["code"].replace("\r\n", "\n")
    for name, source in (("code", record["code"]), ("test_list", "\n".join(record["test_list"]))):
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"{record['place']}: {name} must be Python code: {error}") from None
    return record


def _asked(record: Record) -> str:
    return ASKED.format(record["text"], "\n".join(record["test_list"]))


def _task(record: Record, examples: str) -> Task:
    if examples:
        prompt, reference = examples + _asked(record) + BEGIN.rstrip(), "\n" + record["code"]
    else:
        prompt = f"[INST] {_asked(record)}Put your code between {OPEN} and {CLOSE} tags. [/INST]"
        reference = f" {OPEN}\n{record['code']}\n"
    return Task(str(record["task_id"]), prompt, reference=reference, record=record)


def _finish(task: Task, text: str) -> str:
    return text.rpartition(OPEN)[2]


def _checks(task: Task, completion: str) -> list[Check]:
    record = task.record
    test = "\n".join(
        [*record.get("test_imports", ()), record.get("test_setup_code", ""), *record["test_list"]]
    )
    names = ",".join(tested_names(record["code"], record["test_list"]))
    code = f"{completion}\n{test}\n"
    return [
        Check(
            Program(
                task.task_id,
                "python",
                code,
                TIMEOUT,
                candidate=completion,
                test=test,
                entry_point=names,
            )
        )
    ]


def tested_names(code: str, tests: Sequence[str]) -> list[str]:
    """Returns what the tests use of what `code` defines."""
    used = {node.id for node in ast.walk(ast.parse("\n".join(tests))) if isinstance(node, ast.Name)}
    defined = {
        node.name
        for node in ast.parse(code).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    return sorted(used & defined)


SUITE = Suite(
    load,
    MbppOptions,
    checksums=("a6fe433e048368a7827bca9bf282dd73afd34a38fbe9e3c9bb4101d848d81848",),
)
