"""The next line of a long file, by exact match and BLEU: LCC.

Guo et al. 2023; Code Llama, table 7.

Code Llama resampled LCC's validation and test sets so that file sizes are balanced; which points it
took is not published. Here a bin of BIN characters of context gives at most PER_BIN points, the
same ones always.
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
BIN = 16_000  # about 4,000 tokens
PER_BIN = 24  # gives about 500 points up to 100,000 tokens
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
    """A file for each language, whose name is its group."""
    records = read_records(options.data, FIELDS)
    tasks = [_task(number, record) for number, record in enumerate(records)]
    tasks = tasks if options.all_tasks else balanced(tasks)
    return Benchmark(
        "lcc", tasks, max_new_tokens=128, cut=until(("\n",)), judge=_judge, paper=PAPER
    )


def balanced(tasks: list[Task]) -> list[Task]:
    """Returns at most PER_BIN tasks of each group and size, chosen by a hash of their text."""
    bins: dict[tuple[str, int], list[Task]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: hashlib.sha256(task.prompt.encode()).digest()):
        bins[task.group, len(task.prompt) // BIN].append(task)
    chosen = {task.task_id for some in bins.values() for task in some[:PER_BIN]}
    return [task for task in tasks if task.task_id in chosen]


def _task(number: int, record: Record) -> Task:
    """A context that ends with its line's newline goes on with the target line.

    The prompt is left as it is.
    """
    return Task(
        f"{record['file']}/{number}",
        record["context"],
        reference=f"{record['gt']}\n",
        group=record["file"],
        record={"line": record["gt"]},
    )


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    written, wanted = sample["completion"].strip(), task.record["line"].strip()
    return {"exact": float(written == wanted), "bleu": smoothed_bleu(written, wanted)}


SUITE = Suite(load, LccOptions)
