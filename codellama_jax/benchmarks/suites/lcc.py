"""LCC: the next line of a long file, measured by exact match and BLEU.

Guo et al. 2023; Code Llama, table 7.

Code Llama resampled LCC's validation and test sets so that file sizes are balanced, but did not
publish which points it used. Here at most PER_BIN points are used of each bin of BIN characters of
context, always the same ones.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated

from codellama_jax.benchmarks.benchmark import Benchmark, Record, Sample, Task, read_records, until
from codellama_jax.benchmarks.bleu import smoothed_bleu
from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.paper import Paper, crossed
from codellama_jax.benchmarks.settings import Options, described
from codellama_jax.benchmarks.suite import Suite

FIELDS = {"context": TEXT, "gt": TEXT}
BIN = 16_000  # characters, about 4,000 tokens
PER_BIN = 24  # this results in about 500 points up to 100,000 tokens
# Code Llama, table 7.
PAPER = Paper(
    crossed(("python", "java", "csharp"), ("exact", "bleu")),
    """
        Code Llama 7B 39.23 61.84 51.94 71.89 50.20 70.22
        Code Llama 13B 41.06 62.76 52.67 72.29 52.15 71.00
        Code Llama 34B 44.89 65.99 56.80 73.79 53.71 72.69""",
)


@dataclass(frozen=True)
class LccOptions(Options):
    """Options of LCC."""

    all_tasks: Annotated[bool, described("All points, not a sample that is balanced by size.")] = (
        False
    )


def load(options: LccOptions, tokenizer: object = None) -> Benchmark:
    """Returns the tasks of one file per language; the file's name is the group of its tasks."""
    records = read_records(options.data, FIELDS)
    tasks = [_task(number, record) for number, record in enumerate(records)]
    tasks = tasks if options.all_tasks else balanced(tasks)
    return Benchmark(
        "lcc", tasks, max_new_tokens=128, truncate=until(("\n",)), judge=_judge, paper=PAPER
    )


def balanced(tasks: list[Task]) -> list[Task]:
    """Returns at most PER_BIN tasks of each group and bin of prompt lengths, in their order.

    They are chosen by a hash of their prompts, which is as good as random and always the same.
    """
    bins: dict[tuple[str, int], list[Task]] = defaultdict(list)
    # Sorting by the hash, not by Python's `hash`, which changes with every process.
    for task in sorted(tasks, key=lambda task: hashlib.sha256(task.prompt.encode()).digest()):
        bins[task.group, len(task.prompt) // BIN].append(task)
    chosen = set()
    for tasks_of_bin in bins.values():
        # The first of a bin by their hash.
        chosen |= {task.task_id for task in tasks_of_bin[:PER_BIN]}
    return [task for task in tasks if task.task_id in chosen]


def _task(number: int, record: Record) -> Task:
    # The context ends with a newline, and the prompt keeps it: the model starts with the new line.
    return Task(
        f"{record['file']}/{number}",
        record["context"],
        reference=f"{record['gt']}\n",
        group=record["file"],
        record={"line": record["gt"]},
    )


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    written = sample["completion"].strip()
    line = task.record["line"].strip()
    return {"exact": float(written == line), "bleu": smoothed_bleu(written, line)}


SUITE = Suite(load, LccOptions)
