"""A record of every suite, and a reader that does all that needs no model."""

import small_data as data

from codellama_jax.benchmarks.scoring import checks_of
from codellama_jax.benchmarks.settings import Options
from codellama_jax.benchmarks.suites import LOADERS

SUITES = {  # suite -> a record of it; those of one-record suites must be first in their file
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


def use(suite: str, path, **options) -> None:
    """Loads a file and does with its tasks all that needs no model."""
    shots = {"shots": 0} if suite in ("mbpp", "gsm8k", "truthfulqa") else {}
    benchmark = LOADERS[suite](Options(data=str(path), all_tasks=True, **shots, **options))
    for task in benchmark.tasks:
        sample = {"completion": "", "log_likelihoods": [-1.0] * len(task.choices)}
        task.prompt.encode()
        if benchmark.checks:
            checks_of(benchmark, task, sample)
        if benchmark.judge:
            benchmark.judge(task, sample)
