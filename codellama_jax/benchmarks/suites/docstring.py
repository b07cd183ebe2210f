"""Docstrings of Python functions by infilling (Code Llama, table 13): CodeXGLUE's code-to-text.

The prefix ends with three quotes and a space, the suffix is the body without the closing quotes;
the first line that is not empty is compared with the reference by smoothed BLEU.
"""

from __future__ import annotations

import re

from codellama_jax.benchmarks.benchmark import Benchmark, Record, Sample, Task, read_records
from codellama_jax.benchmarks.bleu import smoothed_bleu
from codellama_jax.benchmarks.fields import TEXT, list_of
from codellama_jax.benchmarks.paper import Paper
from codellama_jax.benchmarks.settings import Options
from codellama_jax.benchmarks.suite import Suite

FIELDS = {"code": TEXT, "docstring_tokens": list_of(TEXT)}
DOCSTRING = re.compile(r":[ \t]*(?:#[^\n]*)?\n\s*[rRuU]{0,2}(\"\"\"|''')(.*?)\1", re.S)
# Code Llama, table 13.
PAPER = Paper(
    ("bleu",),
    """
        Code Llama 7B 20.37
        Code Llama 13B 21.15""",
)


def load(options: Options, tokenizer: object = None) -> Benchmark:
    """Functions whose docstring does not stand in triple quotes are left out."""
    records = read_records(options.data, FIELDS)
    tasks = []
    for number, record in enumerate(records):
        if found := DOCSTRING.search(record["code"]):
            tasks.append(_task(number, record, found))
    return Benchmark(
        "docstring",
        tasks,
        infilling=True,
        max_new_tokens=128,
        cut=_cut,
        finish=lambda task, text: text.strip(),
        judge=_judge,
        paper=PAPER,
    )


def _task(number: int, record: Record, found: re.Match) -> Task:
    code = record["code"]
    reference = " ".join(record["docstring_tokens"])
    return Task(
        str(number),
        code[: found.end(1)] + " ",
        code[found.end() :],
        reference=f"{reference}\n",
        record={"docstring": reference},
    )


def _cut(task: Task, text: str) -> str:
    """Ends with the first line that is not empty."""
    begin = len(text) - len(text.lstrip())
    newline = text.find("\n", begin)
    return text[: newline + 1] if newline >= 0 else text


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    return {"bleu": smoothed_bleu(sample["completion"], task.record["docstring"])}


SUITE = Suite(load)
