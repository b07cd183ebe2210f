"""GSM8K: arithmetic word problems, 8-shot, with reasoning as text or as a program (PAL).

Cobbe et al. 2021; Gao et al. 2022; Code Llama, table 12.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from codellama_jax.benchmarks.benchmark import (
    Benchmark,
    Check,
    Record,
    Sample,
    Task,
    passed,
    read_records,
    until,
)
from codellama_jax.benchmarks.fields import TEXT, list_of
from codellama_jax.benchmarks.paper import Paper
from codellama_jax.benchmarks.settings import Options, ShotOptions
from codellama_jax.benchmarks.suite import Suite, record_files
from codellama_jax.data.downloads import PREFIX
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Program, Verdict
from codellama_jax.system.files import user_path

SHOTS = 8
FIELDS = {"question": TEXT, "answer": TEXT}
PAL_FIELDS = {"questions": list_of(TEXT, least=1), "solutions": list_of(TEXT, least=1)}
# A number with thousands separators and decimals. One without a digit before its point does not
# follow a word or a number: there the point ends a sentence.
NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.)])\.\d+)")
# A minus sign that belongs to a number. After a number or parenthesis it is a subtraction.
MINUS = re.compile(r"(?<![\d)])\N{MINUS SIGN}")
MINUS_CURRENCY = re.compile(r"(?<![\d)])-[$£€](?=\.?\d)")
FEWER_TASKS = "its first problems are the solved examples, as there is no train.jsonl beside it"
PRECISION = 1e-3  # largest difference of a correct answer
TIMEOUT = 3.0  # seconds
# Code Llama, table 12.
PAPER = Paper(
    ("solved",),
    """
        Llama 2 7B 14.7
        Code Llama 7B 13.0
        Code Llama 13B 20.8
        Code Llama 34B 32.7
        Code Llama Python 7B 13.0
        Code Llama Python 34B 34.4""",
)


def load(options: ShotOptions, tokenizer: object = None) -> Benchmark:
    """Returns the problems, to be answered in text.

    The solved examples come from train.jsonl beside the file. Without it, the first problems of
    the file itself are the examples, and no tasks.
    """
    shots = options.shots if options.shots >= 0 else SHOTS
    examples = _train(_folder(options.data), shots)
    problems = _problems(options.data)
    has_fewer_tasks = len(examples) < shots
    if has_fewer_tasks:
        # Examples must not be tasks: the prompt would hold their answers.
        examples, problems = problems[:shots], problems[shots:]
    solved = []
    for record in examples:
        answer = _without_notes(record["answer"])
        solved.append(f"Question: {record['question']}\nAnswer: {answer}\n\n")
    tasks = []
    for record in problems:
        prompt = f"{''.join(solved)}Question: {record['question']}\nAnswer:"
        tasks.append(_task(record, prompt, f" {_without_notes(record['answer'])}\n\n"))
    # A base model continues with another question after its answer.
    return Benchmark(
        "gsm8k",
        tasks,
        truncate=until(("\nQuestion:",)),
        judge=_judge,
        paper=PAPER,
        task_difference=FEWER_TASKS if has_fewer_tasks else options.difference(SHOTS),
    )


def load_programs(options: ShotOptions, tokenizer: object = None) -> Benchmark:
    """Returns the problems, to be answered by a Python function `solution`.

    The solved examples come from pal*.json beside the file, which holds one object with the lists
    `questions` and `solutions`.
    """
    shots = options.shots if options.shots >= 0 else SHOTS
    files = sorted(_folder(options.data).glob("pal*.json"))
    if not files:
        raise UserError(
            "gsm8k_programs takes its examples from a pal*.json beside "
            f"{options.data or '--data'}: put one there"
        )
    records = read_records(files[0], PAL_FIELDS)
    if not records:
        raise UserError(f"{files[0]} holds no examples: it needs `questions` and `solutions`")
    questions, solutions = records[0]["questions"], records[0]["solutions"]
    if len(questions) != len(solutions):
        counts = f"{len(questions)} questions and {len(solutions)} solutions"
        raise UserError(f"{files[0]} has {counts}: each question needs its solution")
    pairs = list(zip(questions, solutions))
    if options.shots > len(pairs):
        limit = f"{len(pairs)}, the number of examples in {files[0]}"
        raise UserError(f"--shots must be at most {limit}, not {shots}")
    solved = []
    for question, solution in pairs[:shots]:
        # PAL separates its examples by five empty lines.
        solved.append(f"{_program_prompt(question)}{solution}\n\n\n\n\n\n")
    examples = "".join(solved)
    tasks = []
    for record in _problems(options.data):
        tasks.append(_task(record, examples + _program_prompt(record["question"]).rstrip()))
    return Benchmark(
        "gsm8k_programs",
        tasks,
        # The separator of the examples ends the program.
        truncate=until(("\n\n\n\n",)),
        finish=_without_empty_lines,
        checks=_checks,
    )


def _folder(data: str) -> Path:
    """Returns the folder with the examples: that of the data, or the current one for a download."""
    if not data or data.startswith(PREFIX):
        return Path()
    path = Path(user_path(data))
    if not os.path.exists(path):
        raise UserError(f"--data: no file or folder {data[:200]}")
    return path if path.is_dir() else path.parent


def _train(folder: Path, shots: int) -> list[Record]:
    train = folder / "train.jsonl"
    return read_records(train, FIELDS)[:shots] if train.exists() else []


def _test_files(options: Options) -> list[Path]:
    """Returns the files of the problems, without those of the examples in the same folder."""
    files = record_files(options)
    return files if len(files) == 1 else [file for file in files if file.name == "test.jsonl"]


def _problems(data: str) -> list[Record]:
    """Returns the problems of a file, a download, or the file test.jsonl of a folder."""
    is_folder = data and not data.startswith(PREFIX) and os.path.isdir(user_path(data))
    records = read_records(Path(user_path(data)) / "test.jsonl" if is_folder else data, FIELDS)
    return [{**record, "number": number} for number, record in enumerate(records)]


def _task(record: Record, prompt: str, reference: str | None = None) -> Task:
    # The data is checked with the function that reads the model's answers.
    answer = last_number(record["answer"])
    if answer is None:
        end = record["answer"][-60:]
        raise UserError(f"{record['place']}: answer must hold a number, not {end!r}")
    kept = {"answer": answer, "question": record["question"]}
    return Task(str(record["number"]), prompt, reference=reference, record=kept)


def _without_notes(answer: str) -> str:
    """Returns an answer without the annotations <<...>> for a calculator."""
    return re.sub(r"<<[^>]*>>", "", answer)


def _program_prompt(question: str) -> str:
    return f"Q: {question}\n\n# solution in Python:\n\n\n"


def _without_empty_lines(task: Task, text: str) -> str:
    """Returns the program without empty lines before it."""
    return text.lstrip("\n")


def last_number(text: str) -> float | None:
    """Returns the number after `####` or "the answer is", else the last number of a text.

    Returns None if there is no number.
    """
    text = MINUS_CURRENCY.sub("-", MINUS.sub("-", text))
    # Models write the answer in either form: GSM8K's own, or that of chain-of-thought prompts.
    marked = re.split(r"####|[Tt]he answer is", text)
    numbers = NUMBER.findall(marked[-1])
    if not numbers:
        return None
    # After a marker the first number is the answer; without one, the last number of the reasoning.
    number = numbers[0] if len(marked) > 1 else numbers[-1]
    return float(number.replace(",", ""))


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    written = last_number(sample["completion"])
    is_solved = written is not None and abs(written - task.record["answer"]) < PRECISION
    return {"solved": float(is_solved)}


def _checks(task: Task, completion: str) -> list[Check]:
    def accepts(verdict: Verdict) -> bool:
        try:
            difference = abs(float(verdict.stdout) - task.record["answer"])
        except ValueError:
            return False
        return passed(verdict) and difference < PRECISION

    code = f"{completion}\nprint(solution())\n"
    return [Check(Program(task.task_id, "python", code, TIMEOUT, rule="output"), accepts)]


SUITE = Suite(
    load,
    ShotOptions,
    checksums=("ae6a977c3224d773ee7384cbf8d047eca5ac483cc88a182edc96fa2a90c2c31e",),
    published_files=_test_files,
)
PROGRAMS = Suite(load_programs, ShotOptions)
