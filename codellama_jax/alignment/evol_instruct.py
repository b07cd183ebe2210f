"""Evol-Instruct for code, as PanGu-Coder2 (section 3.1) and WizardCoder use it.

Tasks are changed in rounds, each by one method drawn at random; every task, the seeds included, is
answered; answers are cleaned, and those that hold a text of a benchmark dropped. The papers publish
neither the rules of cleaning nor those of the search for benchmarks: both are ours. Files in one
folder, of which the first two continue after a kill:

    evolved.jsonl   answers to the prompts for changed tasks, by seed and round
    answers.jsonl   answers to the tasks
    dataset.jsonl   the tasks that are kept, as conversations with their provenance
    dropped.jsonl   the tasks that are not, with the reason: for a leak the rule and the
                    benchmark's task
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from codellama_jax.alignment import evol_prompts
from codellama_jax.alignment.answers import Answerer, Failure, answered
from codellama_jax.benchmarks.programs import program
from codellama_jax.benchmarks.samples import Key, make_folder
from codellama_jax.checked import Checked, Range
from codellama_jax.data.prepare.contamination.index import (
    BenchmarkText,
    Decontamination,
    Index,
    find,
)
from codellama_jax.system.files import write_file
from codellama_jax.tokenizers.chat import Message

EVOLVED, ANSWERS = "evolved.jsonl", "answers.jsonl"
DATASET, DROPPED = "dataset.jsonl", "dropped.jsonl"
# Every rule that drops a document: exact substrings, n-grams of words, and the Jaccard index of
# words, which MinHash would only estimate.
RULES = Decontamination(substring=True, similarity=True, ngrams=True)
LEAST_TASK, MOST_TASK = 10, 4_000  # characters
MOST_CODE = 8_000
LEAK = "leak by"  # how the reason begins that names a benchmark's task


@dataclass(frozen=True)
class EvolInstruct(Checked):
    """How tasks are changed."""

    rounds: Annotated[int, Range(0, 100)] = 3  # each changes every task once
    breadth: Annotated[float, Range(0, 1)] = 0.0  # share of tasks changed in breadth
    batch: Annotated[int, Range(1, 10_000)] = 64  # requests that are answered at once
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # draws the methods


class Evolved(NamedTuple):
    """A task and how it was made."""

    text: str
    method: str  # "" for a seed


@dataclass(frozen=True)
class Report:
    """What became of the tasks. `reasons`: those that were dropped, by reason."""

    tasks: int
    kept: int
    reasons: dict[str, int]


def make_dataset(
    writer: Answerer,
    solver: Answerer,
    seeds: Sequence[str],
    benchmarks: Sequence[BenchmarkText],
    params: EvolInstruct,
    folder: Path,
    provenance: dict[str, Any],
) -> Report:
    """Writes the files of a folder, continuing those in it, and returns the report.

    Args:
        writer: changes tasks.
        solver: answers them.
        seeds: the first tasks, such as the instructions of CodeAlpaca.
        benchmarks: texts that no kept task or answer may hold.
        params: how tasks are changed.
        folder: holds one dataset; it belongs to these models, seeds and `params`.
        provenance: further fields of each line of the dataset, such as the names of the models.
    """
    make_folder(folder)
    reasons: Counter[str] = Counter()
    tasks = _evolve(writer, seeds, params, folder, reasons)
    conversations = {}
    for name, task in tasks.items():
        conversations[name] = evol_prompts.ask_for_answer(task.text)
    # Seeds and all rounds are answered: the dataset holds tasks of every difficulty.
    answers = answered(solver, conversations, folder / ANSWERS, params.batch)
    leaks = Leaks(benchmarks)
    kept, dropped = [], []
    earlier: set[str] = set()
    for name, task in tasks.items():
        line: dict[str, Any] = {"task_id": name[0], "sample": name[1]}
        answer = answers[name]
        if isinstance(answer, Failure):
            reason, code = f"answer: the model {answer.reason}", ""
        else:
            # Evaluated in the order of the tasks, as `earlier` decides which of two duplicates is
            # kept.
            reason, code = problem_of(task, answer, earlier, leaks)
        if reason:
            # The reason of a leak ends with the benchmark's task: "leak by RULE: BENCHMARK TASK".
            is_leak = reason.startswith(LEAK)
            reasons[" ".join(reason.split(" ")[:4]) if is_leak else reason] += 1
            dropped.append({**line, "reason": reason, "task": task.text})
            continue
        earlier.add(_normal(task.text))
        messages = [Message("user", task.text), Message("assistant", f"```python\n{code}```")]
        line["messages"] = [message._asdict() for message in messages]
        kept.append({**line, "method": task.method, "seed": params.seed, **provenance})
    _write(folder / DATASET, kept)
    _write(folder / DROPPED, dropped)
    return Report(len(tasks), len(kept), dict(sorted(reasons.items())))


class Leaks:
    """Finds texts of benchmarks in tasks and their answers."""

    def __init__(self, benchmarks: Sequence[BenchmarkText]):
        """Takes the texts of the benchmarks."""
        self._all = Index.build(benchmarks, RULES)
        # A task has the words of a prompt alone, beside which those of the solution would be
        # missing. As separate tasks, prompts and docstrings are compared one by one.
        prompts = []
        for text in benchmarks:
            if text.kind != "solution":
                prompts.append(text._replace(task=f"{text.task} ({text.kind})"))
        self._prompts = Index.build(prompts, Decontamination(similarity=True))

    def reason(self, text: str, code: str) -> str:
        """Returns the rule and the benchmark's task that a task or its code hold, or ""."""
        # Together, for a benchmark's prompt and solution may be split between them; and each alone,
        # for beside a long one the words of the other are no longer similar.
        spans = [
            *find(f"{text}\n{code}", self._all),
            *find(code, self._all),
            *find(text, self._prompts),
        ]
        # The first match is enough: one leak drops the task.
        for span in spans:
            return f"{LEAK} {span.rule}: {span.benchmark} {span.task}"
        return ""


def problem_of(task: Evolved, answer: str, earlier: set[str], leaks: Leaks) -> tuple[str, str]:
    """Returns the reason why a task with its answer is dropped, or "", and the answer's code.

    The rules, in this order: the task's length; words of our own prompt in a task that a model
    changed; a task that was kept before; no usable Python function in the answer; the length of the
    code; a text of a benchmark in the task or the code.

    Args:
        task: the task.
        answer: the answer to it.
        earlier: the tasks that were kept, as `_normal` returns them.
        leaks: finds texts of benchmarks.
    """
    text = task.text
    if not LEAST_TASK <= len(text) <= MOST_TASK:
        return "the task is too short or too long", ""
    lowered = text.lower()
    # A changed task sometimes repeats the instruction to change it. Seeds have no method, and they
    # may hold these words honestly.
    if task.method and any(words in lowered for words in evol_prompts.TEMPLATE_WORDS):
        return "the task repeats the prompt", ""
    if _normal(text) in earlier:
        return "the task is a duplicate", ""
    code, reason = program(answer)
    if reason:
        return f"answer with {reason}", ""
    if len(code) > MOST_CODE:
        return "the code is too long", ""
    leak = leaks.reason(text, code)
    return leak, "" if leak else code


def _evolve(
    writer: Answerer,
    seeds: Sequence[str],
    params: EvolInstruct,
    folder: Path,
    reasons: Counter[str],
) -> dict[Key, Evolved]:
    """Returns the seeds and the task of each round, by seed and round.

    A round changes the task of the round before; one that came out empty or too long is changed
    again from there, and so is one for which the model gave no answer, which `reasons` counts.
    """
    # `current` is the text that the next round changes; `tasks` keeps every version.
    current = {f"s{index}": text.strip() for index, text in enumerate(seeds)}
    tasks: dict[Key, Evolved] = {}
    for name, text in current.items():
        tasks[name, 0] = Evolved(text, "")
    for number in range(1, params.rounds + 1):
        conversations, methods = {}, {}
        for name, text in current.items():
            methods[name] = _method(name, number, params)
            conversations[name, number] = evol_prompts.evolve(text, methods[name])
        answers = answered(writer, conversations, folder / EVOLVED, params.batch)
        for (name, _), answer in answers.items():
            if isinstance(answer, Failure):
                reasons[f"change: the model {answer.reason}"] += 1
                continue
            text = answer.strip()
            tasks[name, number] = Evolved(text, methods[name])
            # A failed change stays in `tasks`, where it is counted as dropped, but the next round
            # starts again from the last good version.
            if LEAST_TASK <= len(text) <= MOST_TASK:
                current[name] = text
    return tasks


def _method(name: str, number: int, params: EvolInstruct) -> str:
    # One generator per task and round: a continued run draws the same methods.
    rng = random.Random(f"{params.seed} {name} {number}")
    if rng.random() < params.breadth:
        return evol_prompts.BREADTH
    return rng.choice(list(evol_prompts.METHODS))


def _normal(text: str) -> str:
    """Returns a task in the form in which duplicates are found: lower case, single spaces."""
    return " ".join(text.lower().split())


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    write_file(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
