"""Ranked pairs of answers of a student and of teachers, in a folder (PanGu-Coder2, section 3.2).

    answers-N-T.jsonl  the answers of model N (0 is the student) at temperature T
    pairs.jsonl        the ranked pairs

A process that was killed continues with the answers that are missing, and ends with the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from codellama_jax.alignment.answers import Answerer, Failure, answered
from codellama_jax.alignment.rank import Answer, Ranking, Task, rank
from codellama_jax.benchmarks.samples import make_folder
from codellama_jax.checked import Checked, FieldError, Range
from codellama_jax.config import FREE
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import MIN_TEMPERATURE
from codellama_jax.sandbox.executor import Executor
from codellama_jax.system.files import user_path, write_file
from codellama_jax.system.json_files import Value, read_values
from codellama_jax.tokenizers.chat import Message

PAIRS = "pairs.jsonl"


@dataclass(frozen=True)
class Sampled(Checked):
    """How many answers are ranked. The paper publishes none of these numbers."""

    samples: Annotated[int, Range(1, 1_000)] = 4
    """Answers of each model to each task, at each temperature."""
    temperatures: tuple[Annotated[float, Range(0, 100)], ...] = (0.2, 0.8)
    """The paper samples at several temperatures and does not publish them."""
    most_pairs: Annotated[int, Range(0, 10**6)] = 4
    """Pairs of one task at most, those with the largest difference of scores; 0 keeps all."""
    batch: Annotated[int, Range(1, 10_000)] = field(default=64, metadata=FREE)
    """Requests that are answered at once."""

    def check_relations(self) -> None:
        """Raises FieldError without a temperature, and for one that is given twice."""
        if not self.temperatures:
            raise FieldError(("temperatures",), " is empty: give at least one")
        for temperature in self.temperatures:
            if 0 < temperature < MIN_TEMPERATURE:
                allowed = f"it must be 0, or at least {MIN_TEMPERATURE:g}"
                raise FieldError(("temperatures",), f" is {temperature:g}: {allowed}")
        # Two that are equal in the names of the files would count each answer twice.
        names = [name_of_temperature(temperature) for temperature in self.temperatures]
        if len(set(names)) < len(names):
            problem = f" is {' '.join(names)}: give each temperature once"
            raise FieldError(("temperatures",), problem)


def make_pairs(
    models: Sequence[str],
    answerer: Callable[[str, float], Answerer],
    tasks: Sequence[Task],
    sampled: Sampled,
    folder: Path,
    conversation: Callable[[str], list[Message]],
    workers: int | None = None,
) -> tuple[Ranking, Counter[str]]:
    """Writes the files of a folder, continuing those in it.

    Returns the ranking, and the number of requests without an answer by model and reason.

    Args:
        models: the student, then the teachers.
        answerer: returns the answerer of a model at a temperature.
        tasks: without answers.
        sampled: how many answers.
        folder: belongs to these models, tasks and numbers.
        conversation: returns the messages that ask for the answer to a task's prompt.
        workers: programs that run at once; None takes one per core.
    """
    make_folder(folder)
    answers = []
    failures: Counter[str] = Counter()
    for number, model in enumerate(models):
        # Every task has a list, even an empty one: `rank` looks all of them up.
        by_task: dict[str, list[Answer]] = {task.name: [] for task in tasks}
        for temperature in sampled.temperatures:
            conversations = {}
            for task in tasks:
                for sample in range(sampled.samples):
                    conversations[task.name, sample] = conversation(task.prompt)
            # One file per model and temperature, since the keys of the answers repeat between them.
            path = folder / f"answers-{number}-{name_of_temperature(temperature)}.jsonl"
            texts = answered(answerer(model, temperature), conversations, path, sampled.batch)
            for (name, _), text in texts.items():
                if isinstance(text, Failure):
                    failures[f"{model}: the model {text.reason}"] += 1
                    continue
                by_task[name].append(Answer(model, temperature, text))
        answers.append(by_task)
    # Only now, because every teacher's answer is compared with every answer of the student.
    with Executor(workers) as executor:
        ranking = rank(executor, _with_answers(tasks, answers), sampled.most_pairs)
    lines: list[dict[str, Any]] = ranking.pairs
    write_file(folder / PAIRS, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    return ranking, failures


def name_of_temperature(temperature: float) -> str:
    """Returns a temperature as it is in the names of files."""
    return f"{temperature:g}"


def hash_of(tasks: Sequence[Task]) -> str:
    """Returns a hash of the contents of tasks."""
    return hashlib.sha256(json.dumps(tasks).encode()).hexdigest()


def read_tasks(path: str) -> list[Task]:
    """Returns the tasks of a file, without answers.

    Raises UserError naming the place of the first record without a prompt or tests.
    """
    tasks = []
    for number, value in enumerate(read_values(user_path(path)).values):
        # The name is the place in the file, on which the PRNG keys of the answers depend.
        prompt, tests = _prompt(value), _tests(value)
        tasks.append(Task(f"t{number}", prompt, tests, (), ()))
    if not tasks:
        raise UserError(f"the tasks in {path}: the file has no records")
    return tasks


def _prompt(value: Value) -> str:
    record = value.value if isinstance(value.value, dict) else {}
    prompt = record.get("prompt")
    messages = record.get("messages")
    # A dataset of self-instruct holds conversations, whose first message is the question.
    if prompt is None and isinstance(messages, list) and messages:
        first = messages[0]
        prompt = first.get("content") if isinstance(first, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{value.place} has no prompt: it needs `prompt` or `messages`, a text")
    return prompt.strip()


def _tests(value: Value) -> tuple[str, ...]:
    tests = value.value.get("tests") if isinstance(value.value, dict) else None
    statements = tests if isinstance(tests, list) else []
    if not statements or not all(isinstance(test, str) and test.strip() for test in statements):
        raise UserError(f"{value.place} has no tests: it needs `tests`, a list of asserts")
    return tuple(statements)


def _with_answers(tasks: Sequence[Task], answers: Sequence[dict[str, list[Answer]]]) -> list[Task]:
    """Returns the tasks with the answers of the student, the first, and of the teachers."""
    # In the order of `models`, whose first is the student.
    student, *teachers = answers
    complete = []
    for task in tasks:
        theirs: list[Answer] = []
        for teacher in teachers:
            theirs += teacher[task.name]
        ours = tuple(student[task.name])
        complete.append(task._replace(student=ours, teachers=tuple(theirs)))
    return complete
