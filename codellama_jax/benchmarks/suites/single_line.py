"""Single-line infilling in Python, Java and JavaScript by exact match.

Allal et al. 2023, SantaCoder; Code Llama, table 6.
"""

from __future__ import annotations

from codellama_jax.benchmarks.benchmark import Benchmark, Record, Sample, Task, read_records, until
from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.settings import Options

FIELDS = {"prompt": TEXT, "suffix": TEXT, "canonical_solution": TEXT, "language": TEXT}


def load(options: Options, tokenizer: object = None) -> Benchmark:
    tasks = [
        _task(number, record) for number, record in enumerate(read_records(options.data, FIELDS))
    ]
    return Benchmark(
        "single_line", tasks, infilling=True, max_new_tokens=128, cut=until(("\n",)), judge=exact
    )


def exact(task: Task, sample: Sample) -> dict[str, float]:
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
