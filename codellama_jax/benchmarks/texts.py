"""The texts of benchmarks that a training corpus should not hold, from the published files.

They are those that BigCode searches for, where the published files have them: prompts, docstrings
and canonical solutions. Solved examples and instructions of this project's prompts are left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

from codellama_jax.benchmarks.benchmark import Task
from codellama_jax.benchmarks.fields import TEXT, WORD, check_record, optional, or_null
from codellama_jax.benchmarks.suites import load, suite_of
from codellama_jax.data.prepare.contamination.index import BenchmarkText
from codellama_jax.errors import UserError
from codellama_jax.system.files import read_json, user_path

Texts = Iterator[tuple[str, str, str]]  # task, kind and text
DOCSTRING = re.compile(r"(\"\"\"|''')(.*?)\1", re.S)


def _functions(task: Task) -> Texts:
    prompt = task.record["prompt"]
    yield task.task_id, "prompt", prompt
    yield task.task_id, "solution", task.record["canonical_solution"]
    # The last one: helper functions before the task's own have docstrings too.
    docstrings = DOCSTRING.findall(prompt)
    if docstrings:
        yield task.task_id, "docstring", docstrings[-1][1]


def _mbpp(task: Task) -> Texts:
    yield task.task_id, "prompt", task.record["text"]
    yield task.task_id, "solution", task.record["code"]


def _apps(task: Task) -> Texts:
    yield task.task_id, "prompt", task.record["question"]
    # The first of up to hundreds: all of them would be 100,000 texts, which BigCode omits too.
    for solution in task.record["solutions"][:1]:
        yield task.task_id, "solution", solution


def _multipl_e(task: Task) -> Texts:
    yield task.task_id, "prompt", task.record["prompt"]


def _infilling(task: Task) -> Texts:
    record = task.record
    program = f"{record['prompt']}{record['canonical_solution']}{record['suffix']}"
    # Thousands of tasks remove another part of the same program: KIND/HumanEval/NUMBER/PART.
    yield "/".join(task.task_id.split("/")[1:3]), "solution", program


def _single_line(task: Task) -> Texts:
    record = task.record
    program = f"{record['prompt']}{record['canonical_solution']}{record['suffix']}"
    yield task.task_id, "solution", program


def _docstring(task: Task) -> Texts:
    yield task.task_id, "solution", task.record["code"]


def _gsm8k(task: Task) -> Texts:
    yield task.task_id, "prompt", task.record["question"]


def _truthfulqa(task: Task) -> Texts:
    yield task.task_id, "prompt", task.record["question"]


def _lcc(task: Task) -> Texts:
    yield task.task_id, "prompt", task.prompt + (task.reference or "")


TEXTS: dict[str, Callable[[Task], Texts]] = {
    "humaneval": _functions,
    "humaneval_plus": _functions,
    "mbpp": _mbpp,
    "apps": _apps,
    "multipl_e": _multipl_e,
    "humaneval_x": _functions,
    "humaneval_infilling": _infilling,
    "single_line": _single_line,
    "docstring": _docstring,
    "gsm8k": _gsm8k,
    "gsm8k_programs": _gsm8k,
    "lcc": _lcc,
    "truthfulqa": _truthfulqa,
}


def _codereval(path: str) -> Texts:
    """Yields the texts of CoderEval4Python.json or CoderEval4Java.json (Yu et al. 2023)."""
    document = read_json(user_path(path))
    records = document.get("RECORDS") if isinstance(document, dict) else document
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} has no RECORDS: name CoderEval4Python.json, as it is published")
    fields = {
        "_id": WORD,
        "code": WORD,
        "docstring": optional(or_null(TEXT)),
        "human_label": optional(or_null(TEXT)),
    }
    for number, record in enumerate(records, 1):
        check_record(record, fields, f"record {number} of {path}")
        yield record["_id"], "solution", record["code"]
        # The function's docstring, and the description that the authors wrote for models.
        for name in ("docstring", "human_label"):
            yield record["_id"], "prompt", record.get(name) or ""


# Benchmarks that are only searched for: they have no suite to evaluate.
FILES: dict[str, Callable[[str], Texts]] = {"codereval": _codereval}


def benchmark_texts(data_paths: Mapping[str, str]) -> list[BenchmarkText]:
    """Returns the texts of benchmarks by name, read from their published files, without repeats.

    `data_paths` maps names of benchmarks to files or folders, as `evaluate NAME --data PATH` takes
    them. Of MBPP the test split is read, tasks 11 to 510. Raises UserError as `evaluate` does for a
    file that is missing or damaged, and for a benchmark that has no texts.
    """
    texts: dict[BenchmarkText, None] = {}
    for name, path in data_paths.items():
        for task_id, kind, text in _texts_of(name, path):
            # An empty docstring or question would match everywhere.
            if text.strip():
                texts[BenchmarkText(name, task_id, kind, text)] = None
    return list(texts)


def _texts_of(name: str, path: str) -> Texts:
    if name in FILES:
        yield from FILES[name](path)
        return
    suite = suite_of(name)
    if name not in TEXTS:
        known = ", ".join([*TEXTS, *FILES])
        raise UserError(f"benchmark {name} has no published texts to find: name one of {known}")
    # Without solved examples, which are no tasks, and are in other files.
    options = {field.name for field in dataclasses.fields(suite.options)}
    shots = {"shots": 0} if "shots" in options else {}
    for task in load(name, data=path, **shots).tasks:
        yield from TEXTS[name](task)
