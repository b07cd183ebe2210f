"""TruthfulQA, multiple choice: MC1, the best answer is the most likely; MC2, the mass of true ones.

Lin et al. 2022.

Six questions with their answers stand before each, drawn at random as in Code Llama's generation
setting (appendix I). Code Llama itself reports answers judged by another model, which this does not
measure.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import numpy as np

from codellama_jax.benchmarks.benchmark import Benchmark, Record, Sample, Task, read_records
from codellama_jax.benchmarks.fields import TEXT, Kind
from codellama_jax.benchmarks.settings import ShotOptions
from codellama_jax.benchmarks.suite import Suite

SHOTS = 6


def _are_targets(value: Any) -> bool:
    """Returns whether a value is {answer: 1 if it is true else 0} with a true answer."""
    return isinstance(value, dict) and all(map(TEXT.accepts, value)) and _are_labels(value.values())


def _are_labels(labels: Iterable[Any]) -> bool:
    known = list(labels)
    return all(type(label) is int and label in (0, 1) for label in known) and 1 in known


TARGETS = Kind("an object of answers with 1 (true, at least one) or 0", _are_targets)
FIELDS = {"question": TEXT, "mc1_targets": TARGETS, "mc2_targets": TARGETS}


def load(options: ShotOptions, tokenizer: object = None) -> Benchmark:
    """Returns the questions of TruthfulQA (Lin et al. 2022), each with choices to rank."""
    records = read_records(options.data, FIELDS)
    shots = options.shots if options.shots >= 0 else SHOTS
    return Benchmark(
        "truthfulqa",
        [_task(records, number, shots) for number in range(len(records))],
        judge=_judge,
    )


def _best(record: Record) -> str:
    return next(answer for answer, true in record["mc1_targets"].items() if true)


def _task(records: list[Record], number: int, shots: int) -> Task:
    others = [record for i, record in enumerate(records) if i != number]
    examples = Random(number).sample(others, min(shots, len(others)))
    told = "".join(f"Q: {record['question']}\nA: {_best(record)}\n\n" for record in examples)
    asked = records[number]
    choices = tuple(
        f" {answer}" for targets in ("mc1_targets", "mc2_targets") for answer in asked[targets]
    )
    return Task(str(number), f"{told}Q: {asked['question']}\nA:", choices=choices, record=asked)


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    one, two = (
        np.array(list(task.record[name].values()), bool) for name in ("mc1_targets", "mc2_targets")
    )
    first, second = np.split(np.array(sample["log_likelihoods"]), [len(one)])
    mass = np.exp(second - second.max())
    return {"mc1": float(one[first.argmax()]), "mc2": float(mass[two].sum() / mass.sum())}


SUITE = Suite(load, ShotOptions)
