"""Self-instruct with execution feedback (Code Llama, section 2.5).

Questions, without exact duplicates; tests for each; ten solutions of each, whose prompt holds one
of the tests; and the first solution that passes all of them. Four files of JSON lines in one
folder hold every answer and verdict:

    questions.jsonl   answers to the prompt for questions
    tests.jsonl       answers to the prompt for tests, one for each question
    solutions.jsonl   answers to the prompt for solutions, with the verdict of the sandbox
    dataset.jsonl     the questions with a solution, as conversations with their provenance

A line is appended when it is complete. A process that was killed continues with the lines that are
missing, and since the PRNG key of an answer depends on its name alone, it ends with the same files.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from codellama_jax.alignment import parsing
from codellama_jax.alignment.answers import (
    Answerer,
    Failure,
    Reply,
    Request,
    answered,
    line_of,
    overlapped,
    replies,
)
from codellama_jax.alignment.outcomes import Candidate, passing
from codellama_jax.alignment.prompts import PAPER, Prompts
from codellama_jax.benchmarks.fields import TEXT, optional
from codellama_jax.benchmarks.programs import program
from codellama_jax.benchmarks.samples import append, continue_file, make_folder
from codellama_jax.checked import Checked, Range
from codellama_jax.config import FREE
from codellama_jax.sandbox.executor import Executor
from codellama_jax.system.files import write_file
from codellama_jax.tokenizers.chat import Message

VERDICT = {"text": TEXT, "status": TEXT, "failure": optional(TEXT)}
QUESTIONS, TESTS, SOLUTIONS = "questions.jsonl", "tests.jsonl", "solutions.jsonl"
DATASET = "dataset.jsonl"


@dataclass(frozen=True)
class Amounts(Checked):
    """How much data to make. The defaults are the paper's."""

    prompts: Annotated[int, Range(1, 10**6)] = 1_240  # for questions: 62,000 at 50 each
    questions: Annotated[int, Range(1, 1_000)] = 50  # asked for in one prompt
    solutions: Annotated[int, Range(1, 1_000)] = 10  # of each question
    # Requests that are answered at once.
    batch: Annotated[int, Range(1, 10_000)] = field(default=64, metadata=FREE)


@dataclass(frozen=True)
class SelfInstruct(Amounts):
    """The amounts with a seed."""

    seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # draws the test that a prompt shows


class Models(NamedTuple):
    """The model of each role. In the paper Llama 2 70B writes questions, Code Llama 7B the rest."""

    questions: Answerer
    tests: Answerer
    solutions: Answerer


class Problem(NamedTuple):
    """A question with its tests."""

    name: str
    question: str
    tests: tuple[str, ...]
    hint: str  # the test that the prompts for solutions show


@dataclass(frozen=True)
class Counts:
    """What became of the questions. `reasons`: answers that were not used, by reason."""

    questions: int
    different: int
    with_tests: int
    solutions: int
    kept: int
    reasons: dict[str, int]


def make_dataset(
    models: Models,
    executor: Executor,
    params: SelfInstruct,
    folder: Path,
    provenance: dict,
    prompts: Prompts = PAPER,
    is_excluded: Callable[[str], bool] | None = None,
) -> Counts:
    """Writes the files of a folder, continuing those in it, and returns the counts of each step.

    Args:
        models: answer the prompts.
        executor: runs the solutions.
        params: how much to make.
        folder: holds one dataset; it belongs to these models and `params`.
        provenance: further fields of each line of the dataset, such as the names of the models.
        prompts: of the three steps.
        is_excluded: returns whether a question is left out, as one on which models are evaluated.
    """
    make_folder(folder)
    reasons: Counter[str] = Counter()
    answers = _questions(models.questions, prompts, params, folder)
    listed: list[str] = []
    others: list[str] = []
    for answer in answers:
        if isinstance(answer, Failure):
            reasons[f"questions: the model {answer.reason}"] += 1
            continue
        questions = parsing.questions(answer)
        # Older versions read plain numbers only. These come first, so that the questions of a
        # folder that is continued keep their names.
        if parsing.is_numbered(answer):
            listed += questions
        else:
            others += questions
        reasons["an answer without questions"] += not questions
    listed += others
    different = parsing.different(listed)
    # The excluded questions are removed before tests and solutions are paid for.
    asked = different
    if is_excluded:
        asked = [question for question in different if not is_excluded(question)]
        reasons["a question of the evaluation"] += len(different) - len(asked)
    problems = _problems(models.tests, prompts, asked, params, folder, reasons)
    solver = Solver(models.solutions, prompts, executor)
    # The first solution that passes all tests is kept, of the `solutions` that are always all
    # drawn.
    solved = _solve(solver, problems, params, folder, reasons)
    _write_dataset(folder, problems, solved, params, provenance)
    return Counts(
        questions=len(listed),
        different=len(different),
        with_tests=len(problems),
        solutions=len(problems) * params.solutions,
        kept=len(solved),
        reasons=dict(sorted((reason, count) for reason, count in reasons.items() if count)),
    )


class Solver(NamedTuple):
    """Writes solutions and runs them."""

    answerer: Answerer
    prompts: Prompts
    executor: Executor


def _questions(
    answerer: Answerer, prompts: Prompts, params: SelfInstruct, folder: Path
) -> list[Reply]:
    """Returns the replies to the prompt for questions, in the order of their numbers."""
    messages = prompts.ask_for_questions(params.questions)
    # The same prompt every time: the number is part of the PRNG key, and makes the answers differ.
    conversations = {("questions", number): messages for number in range(params.prompts)}
    return list(answered(answerer, conversations, folder / QUESTIONS, params.batch).values())


def _problems(
    answerer: Answerer,
    prompts: Prompts,
    questions: Sequence[str],
    params: SelfInstruct,
    folder: Path,
    reasons: Counter[str],
) -> list[Problem]:
    """Returns the questions for which the model wrote tests; counts the reasons of the others.

    Arguments: as of `make_dataset`, and the counts by reason.
    """
    conversations = {}
    for index, question in enumerate(questions):
        # The name is the index among all questions, so a continued folder finds its answers again.
        conversations[f"q{index}", 0] = prompts.ask_for_tests(question)
    answers = answered(answerer, conversations, folder / TESTS, params.batch)
    problems = []
    for ((name, _), answer), question in zip(answers.items(), questions):
        if isinstance(answer, Failure):
            reasons[f"tests: the model {answer.reason}"] += 1
            continue
        tests, reason = parsing.tests(answer)
        if reason:
            reasons[f"tests: {reason}"] += 1
            continue
        # The other tests stay hidden: a solution that only satisfies the one shown is dropped.
        hint = random.Random(f"{params.seed} {name}").choice(tests)
        problems.append(Problem(name, question, tuple(tests), hint))
    return problems


def _solve(
    solver: Solver,
    problems: Sequence[Problem],
    params: SelfInstruct,
    folder: Path,
    reasons: Counter[str],
) -> dict[str, tuple[int, str]]:
    """Returns the number and code of the first solution that passes, by the problem's name.

    The solutions of a batch run in the sandbox while the next batch is generated. Arguments: as of
    `make_dataset`, and the counts by reason.
    """
    path = folder / SOLUTIONS
    lines = continue_file(path, VERDICT)
    # A solution with its verdict is one line: it is complete, or it is made again.
    done = {(line["task_id"], line["sample"]) for line in lines}
    missing = []
    for problem in problems:
        for number in range(params.solutions):
            if (problem.name, number) not in done:
                missing.append((problem, number))
    requests = []
    for problem, number in missing:
        messages = solver.prompts.ask_for_solution(problem.question, problem.hint)
        requests.append(Request(f"solutions {problem.name} {number}", messages))
    has_answers = any("failure" not in line for line in lines)

    def judge(ready: list[tuple[int, Reply]]) -> list[dict[str, Any]]:
        batch = [(*missing[position], reply) for position, reply in ready]
        return _judge(solver.executor, batch, path)

    solutions = replies(solver.answerer, requests, params.batch, has_answers)
    for judged in overlapped(solutions, judge):
        lines += judged
    names = {problem.name for problem in problems}
    first: dict[str, tuple[int, str]] = {}
    for line in lines:
        if line["task_id"] not in names:
            continue
        if line["status"] != "passed":
            reasons[f"solution: {line['status']}"] += 1
            continue
        number, code = line["sample"], program(line["text"]).code
        # A continued file need not be in the order of the numbers: the lowest one is searched.
        if number < first.get(line["task_id"], (params.solutions, ""))[0]:
            first[line["task_id"]] = number, code
    return first


def _judge(
    executor: Executor, batch: Sequence[tuple[Problem, int, Reply]], path: Path
) -> list[dict[str, Any]]:
    """Runs the solutions of a batch, appends a line for each to `path` and returns the lines."""
    lines, candidates, owners = [], [], []
    for problem, number, reply in batch:
        line = {"task_id": problem.name, "sample": number, **line_of(reply)}
        lines.append(line)
        if isinstance(reply, Failure):
            line["status"] = f"the model {reply.reason}"
            continue
        # Without code the status is the reason; with code the verdict below replaces it.
        code, line["status"] = program(reply)
        if code:
            owners.append(line)
            candidates.append(Candidate(f"{problem.name} {number}", code, problem.tests))
    for position, status in passing(executor, candidates):
        owners[position]["status"] = status
    append(path, lines)
    return lines


def _write_dataset(
    folder: Path,
    problems: Sequence[Problem],
    solved: dict[str, tuple[int, str]],
    params: SelfInstruct,
    provenance: dict,
) -> None:
    """Writes a conversation for each solved problem: the question, and the code in [PYTHON]."""
    lines = []
    for problem in problems:
        if problem.name not in solved:
            continue
        number, code = solved[problem.name]
        # The code between the marks that the prompt for solutions asks for. `code` ends with a
        # newline.
        answer = f"[PYTHON]\n{code}[/PYTHON]"
        messages = [Message("user", problem.question), Message("assistant", answer)]
        line = {
            "task_id": problem.name,
            "sample": number,
            "messages": [message._asdict() for message in messages],
            "tests": list(problem.tests),
            "shown_test": problem.hint,
            "seed": params.seed,
            **provenance,
        }
        lines.append(json.dumps(line) + "\n")
    write_file(folder / DATASET, "".join(lines).encode())
