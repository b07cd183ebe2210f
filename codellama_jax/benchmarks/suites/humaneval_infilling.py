"""HumanEval infilling: a line, several lines or a random span, in PSM or SPM order.

Bavarian et al. 2022; Code Llama, table 14.
"""

from __future__ import annotations

from codellama_jax.benchmarks.benchmark import Benchmark, Check, Record, Task, read_records
from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.settings import Options
from codellama_jax.benchmarks.suites import humaneval

FIELDS = {**humaneval.FIELDS, "suffix": TEXT, "test": TEXT}
SINGLE = "SingleLineInfilling"


def load(options: Options, tokenizer: object = None) -> Benchmark:
    tasks = [_task(record) for record in read_records(options.data, FIELDS)]
    return Benchmark("humaneval_infilling", tasks, infilling=True, cut=_cut, checks=_checks)


def _task(record: Record) -> Task:
    kind = record["task_id"].split("/")[0]
    return Task(
        record["task_id"],
        record["prompt"],
        record["suffix"],
        reference=record["canonical_solution"],
        group=kind,
        record=record,
    )


def _cut(task: Task, text: str) -> str:
    """Ends a single line with its newline; other middles end where the model says so."""
    newline = text.find("\n")
    return text[: newline + 1] if task.group == SINGLE and newline >= 0 else text


def _checks(task: Task, completion: str) -> list[Check]:
    record = task.record
    helpers = record["prompt"].rpartition(f"def {record['entry_point']}(")[0]
    candidate = record["prompt"] + completion + record["suffix"]
    return humaneval.python_check(record, helpers, candidate, record["test"])
