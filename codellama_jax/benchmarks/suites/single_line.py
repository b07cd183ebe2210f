"""Single-line infilling in Python, Java and JavaScript by exact match.

Allal et al. 2023, SantaCoder; Code Llama, table 6.
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
    """Returns SantaCoder's lines to fill in (Ben Allal et al. 2023), compared exactly."""
    tasks = [
        _task(number, record) for number, record in enumerate(read_records(options.data, FIELDS))
    ]
    return Benchmark(
        "single_line",
        tasks,
        infilling=True,
        max_new_tokens=128,
        cut=until(("\n",)),
        judge=exact,
        paper=PAPER,
    )


def exact(task: Task, sample: Sample) -> dict[str, float]:
    """Returns 1 if the line equals the removed one but for spaces around it, else 0."""
    return {
        "exact": float(sample["completion"].strip() == task.record["canonical_solution"].strip())
    }


def _task(number: int, record: Record) -> Task:
    """Tasks of different lines may carry one name, so their number in the file tells them apart."""
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
