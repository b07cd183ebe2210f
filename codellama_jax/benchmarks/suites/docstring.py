"""Docstrings of Python functions by infilling: CodeXGLUE's code-to-text (Code Llama, table 13).

The prefix ends with the opening quotes and a space. The suffix starts with the code after the
docstring, without the closing quotes. The first line of the answer that is not empty is compared
with the reference by smoothed BLEU.
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
# A colon that ends the signature, a comment perhaps, and a docstring: group 1 its quotes, group 2
# its text.
DOCSTRING = re.compile(r":[ \t]*(?:#[^\n]*)?\n\s*[rRuU]{0,2}(\"\"\"|''')(.*?)\1", re.S)
# Code Llama, table 13.
PAPER = Paper(
    ("bleu",),
    """
        Code Llama 7B 20.37
        Code Llama 13B 21.15""",
)


def load(options: Options, tokenizer: object = None) -> Benchmark:
    """Returns a task per function; those without a docstring in triple quotes are omitted."""
    records = read_records(options.data, FIELDS)
    tasks = []
    for number, record in enumerate(records):
        docstring = DOCSTRING.search(record["code"])
        if docstring:
            tasks.append(_task(number, record, docstring))
    return Benchmark(
        "docstring",
        tasks,
        infilling=True,
        max_new_tokens=128,
        # Only the first line is compared with the reference.
        truncate=_truncate,
        finish=lambda task, text: text.strip(),
        judge=_judge,
        paper=PAPER,
    )


def _task(number: int, record: Record, docstring: re.Match[str]) -> Task:
    code = record["code"]
    # CodeXGLUE compares with these tokens, not with the docstring in the code.
    reference = " ".join(record["docstring_tokens"])
    return Task(
        str(number),
        code[: docstring.end(1)] + " ",
        code[docstring.end() :],
        reference=f"{reference}\n",
        record={"docstring": reference, "code": code},
    )


def _truncate(task: Task, text: str) -> str:
    """Returns the text up to the end of its first line that is not empty."""
    begin = len(text) - len(text.lstrip())
    newline = text.find("\n", begin)
    return text[: newline + 1] if newline >= 0 else text


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    return {"bleu": smoothed_bleu(sample["completion"], task.record["docstring"])}


SUITE = Suite(load)
