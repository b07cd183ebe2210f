"""A record of every suite, and a function that uses a file as far as that needs no model."""

import dataclasses

import small_data as data

from codellama_jax.benchmarks.benchmark import Benchmark
from codellama_jax.benchmarks.scoring import checks_of
from codellama_jax.benchmarks.suites import SUITES as SUITES_BY_NAME
from codellama_jax.benchmarks.suites import load

# Suite -> one of its records.
SUITES = {
    "humaneval": data.DOUBLE,
    "humaneval_plus": data.PLUS[0],
    "mbpp": data.mbpp_record(11),
    "humaneval_x": data.X_PYTHON,
    "humaneval_infilling": data.infilling("SingleLine")[0],
    "multipl_e": data.MULTIPL_E[0],
    "single_line": data.SINGLE_LINE[0],
    "docstring": data.DOCSTRINGS[0],
    "gsm8k": data.GSM8K[0],
    "lcc": data.LCC[1],
    "truthfulqa": data.TRUTHFUL[0],
}


MORE = {"humaneval_x": data.X_GO}  # records with further fields


def load_all(suite: str, path: str, **options) -> Benchmark:
    """Loads all tasks of a file without examples, as far as the suite has such options."""
    options |= {"all_tasks": True, "shots": 0}
    fields = [field.name for field in dataclasses.fields(SUITES_BY_NAME[suite].options)]
    given = {name: value for name, value in options.items() if name in fields}
    return load(suite, data=path, **given)


def use(suite: str, path, **options) -> None:
    """Loads a file, and checks and judges an empty answer to each of its tasks."""
    benchmark = load_all(suite, str(path), **options)
    for task in benchmark.tasks:
        sample = {"completion": "", "log_likelihoods": [-1.0] * len(task.choices)}
        task.prompt.encode()
        if benchmark.checks:
            checks_of(benchmark, task, sample)
        if benchmark.judge:
            benchmark.judge(task, sample)
