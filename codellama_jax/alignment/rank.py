"""Ranks the answers of a student and of teachers by their tests (PanGu-Coder2, section 3.2).

Scores are those of the four outcomes; the paper does not publish their values, ours are 0, 1/3, 2/3
and 1. Of two answers with the same outcome the teacher's ranks higher, by half a step. A pair whose
teacher scores lower than its student is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from codellama_jax.alignment.outcomes import Candidate, Graded, Outcome, grade
from codellama_jax.benchmarks.programs import program
from codellama_jax.sandbox.executor import Executor

STEP = 1 / (len(Outcome) - 1)
# Half a step decides between equal outcomes and never outweighs a better one.
TEACHER_BONUS = STEP / 2


class Answer(NamedTuple):
    """An answer to a task, as a model wrote it."""

    source: str  # the model's name
    temperature: float
    text: str


class Task(NamedTuple):
    """A task with the answers of the student and of teachers."""

    name: str
    prompt: str
    tests: tuple[str, ...]  # assert statements
    student: tuple[Answer, ...]
    teachers: tuple[Answer, ...]


class Scored(NamedTuple):
    """An answer's code and score."""

    answer: Answer
    code: str
    score: float
    outcome: str


@dataclass(frozen=True)
class Ranking:
    """Pairs to train on, as JSON lines, and how many answers ended how.

    Attributes:
        pairs: {"task_id", "sample", "prompt", "chosen", "rejected", ...}, the chosen answer with
            the higher score.
        outcomes: numbers of answers by role and outcome.
        dropped: numbers of pairs that were dropped, by reason.
    """

    pairs: list[dict[str, Any]]
    outcomes: dict[str, int]
    dropped: dict[str, int]


def rank(executor: Executor, tasks: Sequence[Task], most_pairs: int = 0) -> Ranking:
    """Returns the pairs of every teacher's answer with every answer of the student, once each.

    Args:
        executor: runs the answers' programs with the tests.
        tasks: the tasks with their answers.
        most_pairs: of one task, those with the largest difference of scores; 0 keeps all.
    """
    scored = _scored(executor, tasks)
    outcomes: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    pairs = []
    for task in tasks:
        teachers, students = scored[task.name]
        for role, answers in (("teacher", teachers), ("student", students)):
            outcomes.update(f"{role}: {answer.outcome}" for answer in answers)
        lines = []
        for teacher in teachers:
            for student in students:
                reason = _problem(teacher, student)
                if reason:
                    dropped[reason] += 1
                else:
                    lines.append(_line(task, teacher, student))
        # The sort is stable, so pairs of equal difference stay in the order of the answers.
        lines.sort(key=_difference, reverse=True)
        different = _without_copies(lines)
        if len(different) < len(lines):
            dropped["equal to another pair of the task"] += len(lines) - len(different)
        lines = different
        if most_pairs and len(lines) > most_pairs:
            dropped["more pairs of one task than were to be kept"] += len(lines) - most_pairs
            lines = lines[:most_pairs]
        # The number makes the key of a pair unique among those of its task.
        for number, line in enumerate(lines):
            pairs.append({**line, "sample": number})
    return Ranking(pairs, dict(sorted(outcomes.items())), dict(sorted(dropped.items())))


def score(outcome: Outcome, is_teacher: bool) -> float:
    """Returns the score of an outcome; teachers win ties by TEACHER_BONUS."""
    return outcome * STEP + (TEACHER_BONUS if is_teacher else 0.0)


def _scored(
    executor: Executor, tasks: Sequence[Task]
) -> dict[str, tuple[list[Scored], list[Scored]]]:
    """Returns the scored answers of the teachers and of the student, by the task's name."""
    candidates, codes = [], []
    # `_answers` is walked twice in the same order: here for the programs, below for their grades.
    for task, _, answer in _answers(tasks):
        parsed = program(answer.text)
        # The raw text stands for an answer without a program: it does not compile either.
        codes.append(parsed.code or answer.text)
        # "(" does not parse: an answer without a program gets the grade COMPILE_ERROR.
        candidates.append(Candidate(task.name, parsed.code or "(", task.tests))
    scored: dict[str, tuple[list[Scored], list[Scored]]] = {task.name: ([], []) for task in tasks}
    graded: Sequence[Graded] = grade(executor, candidates)
    for (task, is_teacher, answer), code, result in zip(_answers(tasks), codes, graded):
        outcome = result.outcome.name.lower().replace("_", " ")
        value = score(result.outcome, is_teacher)
        scored[task.name][0 if is_teacher else 1].append(Scored(answer, code, value, outcome))
    return scored


def _answers(tasks: Sequence[Task]) -> Iterator[tuple[Task, bool, Answer]]:
    """Yields (task, whether it is a teacher's, answer) of all answers."""
    for task in tasks:
        for answer in task.teachers:
            yield task, True, answer
        for answer in task.student:
            yield task, False, answer


def _problem(teacher: Scored, student: Scored) -> str:
    """Returns the reason why a pair is dropped, or ""."""
    if teacher.score < student.score:
        return "the student's answer is better"
    # Equal texts have equal likelihoods: no training could prefer one of them. Answers without a
    # program are raw texts, and the chat formats remove the space around them.
    if teacher.code.strip() == student.code.strip():
        return "both wrote the same"
    return ""


def _line(task: Task, teacher: Scored, student: Scored) -> dict[str, Any]:
    return {
        "task_id": task.name,
        "prompt": task.prompt,
        "chosen": teacher.code,
        "rejected": student.code,
        "chosen_score": teacher.score,
        "rejected_score": student.score,
        "chosen_outcome": teacher.outcome,
        "rejected_outcome": student.outcome,
        "teacher": teacher.answer.source,
        "temperatures": [teacher.answer.temperature, student.answer.temperature],
    }


def _without_copies(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the first of pairs with equal texts, which models often write at low temperatures."""
    by_texts: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        by_texts.setdefault((line["chosen"].strip(), line["rejected"].strip()), line)
    return list(by_texts.values())


def _difference(line: dict[str, Any]) -> float:
    return line["chosen_score"] - line["rejected_score"]
