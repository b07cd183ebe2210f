"""HumanEval (Codex, section 2) and HumanEval+ (EvalPlus), zero-shot.

The model completes a function from its signature and docstring. `prompts.py` has the prompts and
stop rules of each paper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from codellama_jax.benchmarks.benchmark import (
    Benchmark,
    ChatForm,
    Check,
    Record,
    Task,
    after_space,
    read_records,
)
from codellama_jax.benchmarks.chat import function_solution
from codellama_jax.benchmarks.fields import IDENTIFIER, LIST, NUMBER, TEXT, Kind, list_of, or_null
from codellama_jax.benchmarks.paper import PASS, Paper
from codellama_jax.benchmarks.settings import PromptOptions
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.benchmarks.suites.prompts import FORMS, solved
from codellama_jax.data.functions import Function
from codellama_jax.sandbox import Program

FIELDS = {
    "task_id": TEXT,
    "prompt": TEXT,
    "entry_point": IDENTIFIER,
    "canonical_solution": TEXT,
}
INPUTS = list_of(LIST)  # the arguments of each call
# `atol` is the tolerance of floating-point results.
PLUS_FIELDS = {**FIELDS, "base_input": INPUTS, "plus_input": INPUTS, "atol": or_null(NUMBER)}
TIMEOUT = 3.0  # seconds
PLUS_TIMEOUT = 60.0  # HumanEval+ has hundreds of inputs per task
ZEROS = "HumanEval/32"  # its function returns any zero of a polynomial
# The message to a chat model; the wording is ours.
QUESTION = """\
Complete this Python function. Answer with the complete function in one block of code.

```python
{}
```"""
# Code Llama, table 2; Codex, table 1; PanGu-Coder2, table 2.
PAPER = Paper(
    PASS,
    """
        Codex 12B 28.81 46.81 72.31
        Llama 2 7B 12.2 25.2 44.4
        Code Llama 7B 33.5 59.6 85.9
        Code Llama 13B 36.0 69.4 89.8
        Code Llama 34B 48.8 76.8 93.0
        Code Llama 70B 53.0 84.6 96.2
        Code Llama Instruct 7B 34.8 64.3 88.1
        Code Llama Instruct 34B 41.5 77.2 93.5
        Code Llama Python 7B 38.4 70.3 90.6
        Code Llama Python 34B 53.7 82.8 94.7
        PanGu-Coder2 15B 61.64 79.55 91.76""",
)


def load(options: PromptOptions, tokenizer: object = None) -> Benchmark:
    """Returns the tasks of HumanEval: functions to complete."""
    tasks = _tasks(options, {**FIELDS, "test": TEXT})
    return Benchmark(
        "humaneval",
        tasks,
        truncate=FORMS[options.prompt].truncate,
        finish=_finish,
        checks=_checks,
        program_checks=_program_checks,
        documented=_documented,
        chat=CHAT,
        paper=PAPER,
    )


def load_plus(options: PromptOptions, tokenizer: object = None) -> Benchmark:
    """Returns the tasks of HumanEval+.

    An answer must return the same as the canonical solution for every input of the file, up to the
    task's tolerance.
    """
    tasks = _tasks(options, PLUS_FIELDS)
    return Benchmark(
        "humaneval_plus",
        tasks,
        truncate=FORMS[options.prompt].truncate,
        finish=_finish,
        checks=_plus_checks,
        program_checks=_plus_program_checks,
        documented=_documented,
        chat=CHAT,
    )


def python_check(
    record: Record, prompt: str, candidate: str, test: str, timeout: float = TIMEOUT
) -> list[Check]:
    """Returns the check of a Python function by a published `check(candidate)`.

    Args:
        record: has the task's id and the function's name.
        prompt: the test uses the helper functions that it defines, even if the candidate
            redefines them.
        candidate: the program that defines the function.
        test: defines `check`.
        timeout: seconds of processor time.
    """
    name = record["entry_point"]
    program = Program(
        record["task_id"],
        "python",
        f"{candidate}\n{test}\ncheck({name})",
        timeout,
        candidate=candidate,
        test=test,
        entry_point=name,
        prompt=prompt,
    )
    return [Check(program)]


def _test(task: Task, candidate: str, test: str, timeout: float) -> list[Check]:
    return python_check(task.record, task.record["prompt"], candidate, test, timeout)


def _tasks(options: PromptOptions, fields: Mapping[str, Kind]) -> list[Task]:
    tasks = []
    for record in read_records(options.data, fields):
        prompt, space = FORMS[options.prompt].prompt(record)
        # The model writes the space that the prompt lost.
        reference = space + record["canonical_solution"]
        # `_finish` needs the removed space again, to continue the published prompt.
        record = {**record, "space": space}
        tasks.append(Task(record["task_id"], prompt, reference=reference, record=record))
    return tasks


def _question(task: Task) -> str:
    return QUESTION.format(task.record["prompt"].rstrip())


def _documented(task: Task, completion: str) -> Function:
    return solved(task.record, completion)


def _finish(task: Task, text: str) -> str:
    return after_space(task.record["space"], text)


def _checks(task: Task, completion: str) -> list[Check]:
    return _program_checks(task, task.record["prompt"] + completion)


def _program_checks(task: Task, program: str) -> list[Check]:
    return _test(task, program, task.record["test"], TIMEOUT)


def _plus_checks(task: Task, completion: str) -> list[Check]:
    return _plus_program_checks(task, task.record["prompt"] + completion)


def _plus_program_checks(task: Task, program: str) -> list[Check]:
    return _test(task, program, _plus_test(task.record), PLUS_TIMEOUT)


def _plus_test(record: Record) -> str:
    """Returns a `check(candidate)` that compares with the canonical solution for every input.

    It runs in the sandbox. Arguments are copied because functions may change them.
    """
    # JSON, because the inputs become part of the test's source.
    inputs = json.dumps([*record["base_input"], *record["plus_input"]])
    if record["task_id"] == ZEROS:
        # Other zeros than the canonical one are also correct: the polynomial decides.
        condition = f"abs(known['poly'](arguments[0], value)) <= {record['atol'] or 1e-6}"
    else:
        condition = "same(value, known[name](*copy.deepcopy(arguments)))"
    # `same` treats two NaN as equal (`a != a`), and compares numbers only between floats: an int
    # where a float is expected must be equal exactly.
    return f"""
import copy, json, math
known, name, atol = {{}}, {record["entry_point"]!r}, {record["atol"]} or 1e-6
exec({record["prompt"] + record["canonical_solution"]!r}, known)
def same(a, b):
    if a == b:
        return True
    if isinstance(b, (list, tuple)):
        return type(a) == type(b) and len(a) == len(b) and all(map(same, a, b))
    if not type(a) == type(b) == float:
        return False
    return math.isclose(a, b, rel_tol=1e-7, abs_tol=atol) or a != a and b != b
def check(candidate):
    for arguments in json.loads({inputs!r}):
        value = candidate(*copy.deepcopy(arguments))
        assert {condition}, arguments
"""


CHAT = ChatForm(_question, function_solution)
SUITE = Suite(
    load,
    PromptOptions,
    checksums=("adcce144f7187b8296e488921474e692ca26bf4380b4dca91cd28f2a4b950bc2",),
)
PLUS = Suite(load_plus, PromptOptions)
