"""The registry of benchmarks. Each file of this package defines one suite, or two related ones."""

from __future__ import annotations

from typing import Any

from codellama_jax.benchmarks.benchmark import Benchmark
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.benchmarks.suites import (
    apps,
    bold,
    docstring,
    false_refusal,
    gsm8k,
    humaneval,
    humaneval_infilling,
    humaneval_x,
    key_retrieval,
    lcc,
    mbpp,
    multipl_e,
    perplexity,
    single_line,
    toxigen,
    truthfulqa,
)
from codellama_jax.errors import UserError

# The order is that of --help and of messages.
SUITES: dict[str, Suite] = {
    "humaneval": humaneval.SUITE,
    "humaneval_plus": humaneval.PLUS,
    "mbpp": mbpp.SUITE,
    "apps": apps.SUITE,
    "multipl_e": multipl_e.SUITE,
    "humaneval_x": humaneval_x.SUITE,
    "humaneval_infilling": humaneval_infilling.SUITE,
    "single_line": single_line.SUITE,
    "docstring": docstring.SUITE,
    "gsm8k": gsm8k.SUITE,
    "gsm8k_programs": gsm8k.PROGRAMS,
    "lcc": lcc.SUITE,
    "key_retrieval": key_retrieval.SUITE,
    "truthfulqa": truthfulqa.SUITE,
    "toxigen": toxigen.SUITE,
    "bold": bold.SUITE,
    "false_refusal": false_refusal.SUITE,
    "perplexity": perplexity.SUITE,
}


def suite_of(name: str) -> Suite:
    """Returns the suite of a name. Raises UserError that lists all names for an unknown one."""
    if name not in SUITES:
        *others, last = SUITES
        raise UserError(f"no benchmark {name}: there are {', '.join(others)} and {last}")
    return SUITES[name]


def load(name: str, tokenizer: Any = None, **options: Any) -> Benchmark:
    """Loads the tasks of a benchmark.

    Args:
        name: one of SUITES.
        tokenizer: the model's, for suites whose prompts have a given number of tokens.
        **options: fields of the suite's options, such as `data`.
    """
    suite = suite_of(name)
    if suite.load is None:
        raise UserError(f"{name} has no tasks to load")
    return suite.load(suite.options(**options), tokenizer)
