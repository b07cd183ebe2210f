"""`rank` of the command line: pairs of answers for the objectives rrtf, rrtf_mean and rrhf."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from codellama_jax.alignment import evol_prompts
from codellama_jax.alignment.answers import Failure, answered
from codellama_jax.alignment.commands import MODEL, ModelOptions, opened, print_reasons
from codellama_jax.alignment.rank import Answer, Ranking, Task, rank
from codellama_jax.checked import Range
from codellama_jax.errors import UserError
from codellama_jax.system.files import user_path, write_file, write_json
from codellama_jax.system.json_files import Value, read_values

PAIRS = "pairs.jsonl"
TASKS = (
    "The tasks: JSON lines with `prompt` or `messages`, and `tests`, a list of assert statements;"
    " self-instruct writes such a file."
)


@dataclass(frozen=True)
class RankCommand:
    """Sample answers of a student and of teachers, run their tests, write ranked pairs."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to write; the same command continues one that was interrupted."""
    tasks: Annotated[str, tyro.conf.arg(help=TASKS)]
    student: Annotated[str, tyro.conf.arg(help=MODEL)]
    teacher: tuple[str, ...]
    """The models to learn from, like --student; one or more."""
    models: Annotated[ModelOptions, tyro.conf.arg(name="")]
    samples: Annotated[int, Range(1, 1_000)] = 4
    """Answers of each model to each task, at each temperature."""
    temperatures: tuple[float, ...] = (0.2, 0.8)
    """The paper samples at several temperatures and does not publish them."""
    most_pairs: Annotated[int, Range(0, 10**6)] = 4
    """Pairs of one task at most, those with the largest difference of scores; 0 keeps all."""
    batch: Annotated[int, Range(1, 10_000)] = 64
    """Requests that are answered at once."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """The PRNG seed of all answers."""
    workers: int | None = None
    """How many programs run at once; by default one per core."""

    def __call__(self) -> None:
        """Writes the pairs and prints how the answers ended."""
        tasks = read_tasks(self.tasks)
        sources = [self.student, *self.teacher]
        if len(set(sources)) < len(sources):
            raise UserError("--student and --teacher name the same model twice: give other models")
        for temperature in self.temperatures:
            dataclasses.replace(self.models, temperature=temperature).sampling(self.seed)
        content = hashlib.sha256(json.dumps(tasks).encode()).hexdigest()
        free = ("workers", "models.mesh", "batch")
        out = opened(self.out, self, free, {"content of --tasks": content})
        from codellama_jax.sandbox.executor import Executor

        failures: Counter[str] = Counter()
        answers = []
        for number, source in enumerate(sources):
            answers.append(self._answers(source, number, tasks, out, failures))
        with Executor(self.workers) as executor:
            ranking = rank(executor, _with_answers(tasks, answers), self.most_pairs)
        _write(out, ranking, failures)
        print(f"tasks                {len(tasks):,}")
        print(f"pairs                {len(ranking.pairs):,}")
        print_reasons(ranking.outcomes)
        print_reasons(ranking.dropped)
        print_reasons(failures)
        if ranking.pairs:
            print(f"train on them with --corpus.others NAME {out / PAIRS}, data.examples pairs")
        else:
            print("no pairs: there is no data to train on")

    def _answers(
        self,
        source: str,
        number: int,
        tasks: Sequence[Task],
        out: Path,
        failures: Counter[str],
    ) -> dict[str, list[Answer]]:
        """Returns a model's answers by the task's name, from its files or newly generated.

        Requests without an answer are counted in `failures`.

        Args:
            source: the model.
            number: its place among the models, in the names of its files.
            tasks: the tasks.
            out: the folder of the files.
            failures: by model and reason.
        """
        by_task: dict[str, list[Answer]] = {task.name: [] for task in tasks}
        for temperature in self.temperatures:
            options = dataclasses.replace(self.models, temperature=temperature)
            conversations = {}
            for task in tasks:
                for sample in range(self.samples):
                    conversations[task.name, sample] = evol_prompts.ask_for_answer(task.prompt)
            path = out / f"answers-{number}-{temperature:g}.jsonl"
            answerer = options.answerer(source, self.seed)
            texts = answered(answerer, conversations, path, self.batch)
            for (name, _), text in texts.items():
                if isinstance(text, Failure):
                    failures[f"{source}: the model {text.reason}"] += 1
                    continue
                by_task[name].append(Answer(source, temperature, text))
        return by_task


def read_tasks(path: str) -> list[Task]:
    """Returns the tasks of a file, without answers.

    Raises UserError naming the place of the first record without a prompt or tests.
    """
    tasks = []
    for number, value in enumerate(read_values(user_path(path)).values):
        prompt, tests = _prompt(value), _tests(value)
        tasks.append(Task(f"t{number}", prompt, tests, (), ()))
    if not tasks:
        raise UserError(f"--tasks: {path} has no records")
    return tasks


def _prompt(value: Value) -> str:
    record = value.value if isinstance(value.value, dict) else {}
    prompt = record.get("prompt")
    messages = record.get("messages")
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
    student, *teachers = answers
    complete = []
    for task in tasks:
        theirs: list[Answer] = []
        for teacher in teachers:
            theirs += teacher[task.name]
        ours = tuple(student[task.name])
        complete.append(task._replace(student=ours, teachers=tuple(theirs)))
    return complete


def _write(out: Path, ranking: Ranking, failures: Counter[str]) -> None:
    lines: list[dict[str, Any]] = ranking.pairs
    write_file(out / PAIRS, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    counts = {"outcomes": ranking.outcomes, "dropped": ranking.dropped, "failures": failures}
    write_json(out / "counts.json", counts)
