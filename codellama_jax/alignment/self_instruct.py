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
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from codellama_jax.alignment import parsing, prompts
from codellama_jax.alignment.answers import Answerer, Request, answered, batches
from codellama_jax.alignment.outcomes import Candidate, passing
from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.samples import append, continue_file, make_folder
from codellama_jax.checked import Checked, Range
from codellama_jax.sandbox.executor import Executor
from codellama_jax.system.files import write_file
from codellama_jax.tokenizers.chat import Message

VERDICT = {"text": TEXT, "status": TEXT}
QUESTIONS, TESTS, SOLUTIONS = "questions.jsonl", "tests.jsonl", "solutions.jsonl"
DATASET = "dataset.jsonl"


@dataclass(frozen=True)
class SelfInstruct(Checked):
    """How much data to make. The defaults are the paper's."""

    prompts: Annotated[int, Range(1, 10**6)] = 1_240  # for questions: 62,000 at 50 each
    questions: Annotated[int, Range(1, 1_000)] = 50  # asked for in one prompt
    solutions: Annotated[int, Range(1, 1_000)] = 10  # of each question
    batch: Annotated[int, Range(1, 10_000)] = 64  # requests that are answered at once
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
    models: Models, executor: Executor, params: SelfInstruct, folder: Path, provenance: dict
) -> Counts:
    """Writes the files of a folder, continuing those in it, and returns the counts of each step.

    Args:
        models: answer the prompts.
        executor: runs the solutions.
        params: how much to make.
        folder: holds one dataset; it belongs to these models and `params`.
        provenance: further fields of each line of the dataset, such as the names of the models.
    """
    make_folder(folder)
    reasons: Counter[str] = Counter()
    answers = _questions(models.questions, params, folder)
    listed: list[str] = []
    for answer in answers:
        questions = parsing.questions(answer)
        listed += questions
        reasons["an answer without questions"] += not questions
    different = parsing.different(listed)
    problems = _problems(models.tests, different, params, folder, reasons)
    solved = _solve(models.solutions, executor, problems, params, folder, reasons)
    _write_dataset(folder, problems, solved, params, provenance)
    return Counts(
        questions=len(listed),
        different=len(different),
        with_tests=len(problems),
        solutions=len(problems) * params.solutions,
        kept=len(solved),
        reasons=dict(sorted((reason, count) for reason, count in reasons.items() if count)),
    )


def _questions(answerer: Answerer, params: SelfInstruct, folder: Path) -> list[str]:
    """Returns the answers to the prompt for questions, in the order of their numbers."""
    messages = prompts.ask_for_questions(params.questions)
    conversations = {("questions", number): messages for number in range(params.prompts)}
    return list(answered(answerer, conversations, folder / QUESTIONS, params.batch).values())


def _problems(
    answerer: Answerer,
    questions: Sequence[str],
    params: SelfInstruct,
    folder: Path,
    reasons: Counter[str],
) -> list[Problem]:
    """Returns the questions for which the model wrote tests; counts the reasons of the others."""
    conversations = {}
    for index, question in enumerate(questions):
        conversations[f"q{index}", 0] = prompts.ask_for_tests(question)
    texts = answered(answerer, conversations, folder / TESTS, params.batch)
    problems = []
    for ((name, _), text), question in zip(texts.items(), questions):
        tests, reason = parsing.tests(text)
        if reason:
            reasons[f"tests: {reason}"] += 1
            continue
        # The other tests stay hidden: a solution that only satisfies the one shown is dropped.
        hint = random.Random(f"{params.seed} {name}").choice(tests)
        problems.append(Problem(name, question, tuple(tests), hint))
    return problems


def _solve(
    answerer: Answerer,
    executor: Executor,
    problems: Sequence[Problem],
    params: SelfInstruct,
    folder: Path,
    reasons: Counter[str],
) -> dict[str, tuple[int, str]]:
    """Returns the number and code of the first solution that passes, by the problem's name.

    The solutions of a batch run in the sandbox while the next batch is generated.
    """
    path = folder / SOLUTIONS
    lines = continue_file(path, VERDICT)
    done = {(line["task_id"], line["sample"]) for line in lines}
    missing, requests = [], []
    for problem in problems:
        for number in range(params.solutions):
            if (problem.name, number) not in done:
                missing.append((problem, number))
                messages = prompts.ask_for_solution(problem.question, problem.hint)
                requests.append(Request(f"solutions {problem.name} {number}", messages))
    with ThreadPoolExecutor(1) as pool:
        running: Future | None = None
        for ended in batches(answerer, requests, params.batch):
            batch = [missing[index] for index, _ in ended]
            texts = [text for _, text in ended]
            if running:
                lines += running.result()
            running = pool.submit(_judge, executor, batch, texts, path)
        if running:
            lines += running.result()
    names = {problem.name for problem in problems}
    first: dict[str, tuple[int, str]] = {}
    for line in lines:
        if line["task_id"] not in names:
            continue
        if line["status"] != "passed":
            reasons[f"solution: {line['status']}"] += 1
            continue
        number, code = line["sample"], parsing.program(line["text"]).code
        if number < first.get(line["task_id"], (params.solutions, ""))[0]:
            first[line["task_id"]] = number, code
    return first


def _judge(
    executor: Executor,
    batch: Sequence[tuple[Problem, int]],
    texts: Sequence[str],
    path: Path,
) -> list[dict[str, Any]]:
    """Runs the solutions of a batch, appends a line for each to `path` and returns the lines."""
    lines, candidates, owners = [], [], []
    for (problem, number), text in zip(batch, texts, strict=True):
        code, reason = parsing.program(text)
        line = {"task_id": problem.name, "sample": number, "text": text, "status": reason}
        lines.append(line)
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
