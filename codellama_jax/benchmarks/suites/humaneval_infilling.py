"""HumanEval infilling: the model fills in one line, several lines or a random span.

Prompts are in PSM (prefix, suffix, middle) or SPM order. Bavarian et al. 2022; Code Llama, table
14.
"""

from __future__ import annotations

from codellama_jax.benchmarks.benchmark import Benchmark, Check, Record, Task, read_records
from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.paper import Paper, crossed
from codellama_jax.benchmarks.settings import Options
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.benchmarks.suites import humaneval

FIELDS = {**humaneval.FIELDS, "suffix": TEXT, "test": TEXT}
# The first part of a task's id. The results of the three kinds are reported separately.
KINDS = ("SingleLineInfilling", "MultiLineInfilling", "RandomSpanInfilling")
# Code Llama, table 14.
PAPER = Paper(
    crossed(KINDS, ("pass@1",)),
    """
        Code Llama 7B PSM 74.1 48.2 59.7
        Code Llama 7B SPM 83.3 50.8 39.0
        Code Llama 13B PSM 75.9 51.0 63.6
        Code Llama 13B SPM 85.6 56.1 41.9""",
)


def load(options: Options, tokenizer: object = None) -> Benchmark:
    """Returns HumanEval's canonical solutions, each with a removed part to fill in."""
    tasks = [_task(record) for record in read_records(options.data, FIELDS)]
    return Benchmark(
        "humaneval_infilling",
        tasks,
        infilling=True,
        truncate=_truncate,
        checks=_checks,
        paper=PAPER,
    )


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


def _truncate(task: Task, text: str) -> str:
    """Truncates a single line after its newline; other middles end at the model's <EOT>."""
    newline = text.find("\n")
    is_single_line = task.group == KINDS[0]
    return text[: newline + 1] if is_single_line and newline >= 0 else text


def _checks(task: Task, completion: str) -> list[Check]:
    record = task.record
    # The prefix may end inside the function under test. Only the code before it is trusted.
    helpers = record["prompt"].rpartition(f"def {record['entry_point']}(")[0]
    candidate = record["prompt"] + completion + record["suffix"]
    return humaneval.python_check(record, helpers, candidate, record["test"])


SUITE = Suite(
    load,
    checksums=(
        "5180559a06759a8377a8b0fc10d7a9afa6416565f5c10edafd26e37f080c8867",  # single line
        "9241cdcdf492b1ab4a76ee3deba9fcb9f449eb508c2e208f52dfe154640fde4f",  # several lines
        "0c76f8e6520906ea767b6890494442ea0f378764791084a8a9374d7b7fb0efdc",  # random span
    ),
)
