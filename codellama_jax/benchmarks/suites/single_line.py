"""Single-line infilling in Python, Java and JavaScript, measured by exact match.

SantaCoder, Ben Allal et al. 2023; Code Llama, table 6.
"""

from __future__ import annotations

from codellama_jax.benchmarks.benchmark import Benchmark, Record, Sample, Task, read_records, until
from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.paper import Paper, crossed
from codellama_jax.benchmarks.settings import Options
from codellama_jax.benchmarks.suite import Suite

FIELDS = {"prompt": TEXT, "suffix": TEXT, "canonical_solution": TEXT, "language": TEXT}
# Code Llama, table 6.
PAPER = Paper(
    crossed(("py", "java", "js"), ("exact",)),
    """
        Code Llama 7B PSM 67.6 74.3 80.2
        Code Llama 7B SPM 72.7 77.6 82.6
        Code Llama 13B PSM 68.3 77.6 80.7
        Code Llama 13B SPM 74.5 80.0 85.0""",
)


def load(options: Options, tokenizer: object = None) -> Benchmark:
    """Returns SantaCoder's tasks: functions with one removed line."""
    records = read_records(options.data, FIELDS)
    tasks = [_task(number, record) for number, record in enumerate(records)]
    return Benchmark(
        "single_line",
        tasks,
        infilling=True,
        max_new_tokens=128,
        # Exactly one line was removed.
        truncate=until(("\n",)),
        judge=exact,
        paper=PAPER,
    )


def exact(task: Task, sample: Sample) -> dict[str, float]:
    """Returns the measure `exact`: 1 if the line equals the removed one, else 0.

    Space around the lines is ignored.
    """
    line = task.record["canonical_solution"].strip()
    return {"exact": float(sample["completion"].strip() == line)}


def _task(number: int, record: Record) -> Task:
    # The published names are not unique: several lines of a function have the same one.
    name = f"{record['language']}/{number}"
    return Task(
        name,
        record["prompt"],
        record["suffix"],
        reference=record["canonical_solution"],
        group=record["language"],
        record=record,
    )


SUITE = Suite(load)
