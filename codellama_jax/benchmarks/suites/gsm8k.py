"""Arithmetic word problems, 8-shot: GSM8K with reasoning in text, or as programs (PAL).

Cobbe et al. 2021; Gao et al. 2022; Code Llama, table 12.
"""

from __future__ import annotations

import contextlib
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
from codellama_jax.benchmarks.published import PREFIX
from codellama_jax.benchmarks.settings import Options, ShotOptions
from codellama_jax.benchmarks.suite import Suite, record_files
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Program, Verdict
from codellama_jax.system.files import user_path

SHOTS = 8
FIELDS = {"question": TEXT, "answer": TEXT}
PAL_FIELDS = {"questions": list_of(TEXT, least=1), "solutions": list_of(TEXT, least=1)}
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
MINUS = re.compile(r"(?<![\d)])\N{MINUS SIGN}")  # a sign; behind a number it is a subtraction
MINUS_CURRENCY = re.compile(r"(?<![\d)])-[$£€](?=\d)")
PRECISION = 1e-3
TIMEOUT = 3.0
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
    """Examples come from train.jsonl beside the file.

    Without one the file's first problems are the examples, and are not asked.
    """
    shots = options.shots if options.shots >= 0 else SHOTS
    examples, asked = _train(_folder(options.data), shots), _problems(options.data)
    if len(examples) < shots:
        examples, asked = asked[:shots], asked[shots:]
    prompt = "".join(
        f"Question: {r['question']}\nAnswer: {_without_notes(r['answer'])}\n\n" for r in examples
    )
    ending = lambda record: f"Question: {record['question']}\nAnswer:"
    tasks = [_task(r, prompt + ending(r), f" {_without_notes(r['answer'])}\n\n") for r in asked]
    return Benchmark("gsm8k", tasks, cut=until(("\nQuestion:",)), judge=_judge, paper=PAPER)


def load_programs(options: ShotOptions, tokenizer: object = None) -> Benchmark:
    """Examples come from pal*.json beside the file, `questions` and `solutions` in two lists."""
    shots = options.shots if options.shots >= 0 else SHOTS
    found = sorted(_folder(options.data).glob("pal*.json"))
    if not found:
        raise UserError(
            "gsm8k_programs takes its examples from a pal*.json beside "
            f"{options.data or '--data'}: put one there"
        )
    records = read_records(found[0], PAL_FIELDS)
    if not records:
        raise UserError(f"{found[0]} holds no examples: it needs `questions` and `solutions`")
    pairs = list(zip(records[0]["questions"], records[0]["solutions"]))
    if options.shots > len(pairs):
        limit = f"{len(pairs)}, the number of examples in {found[0]}"
        raise UserError(f"--shots must be at most {limit}, not {shots}")
    pairs = pairs[:shots]
    prompt = "".join(
        f"{_program_of(question)}{solution}\n\n\n\n\n\n" for question, solution in pairs
    )
    tasks = [
        _task(r, prompt + _program_of(r["question"]).rstrip()) for r in _problems(options.data)
    ]
    return Benchmark(
        "gsm8k_programs",
        tasks,
        cut=until(("\n\n\n\n",)),
        finish=lambda task, text: text.lstrip("\n"),
        checks=_checks,
    )


def _folder(data: str) -> Path:
    """Returns the folder of the data, where the examples are; the current one for a download."""
    if not data or data.startswith(PREFIX):
        return Path()
    place = Path(user_path(data))
    if not os.path.exists(place):
        raise UserError(f"--data: no file or folder {data[:200]}")
    return place if place.is_dir() else place.parent


def _train(folder: Path, shots: int) -> list[Record]:
    train = folder / "train.jsonl"
    return read_records(train, FIELDS)[:shots] if train.exists() else []


def _test_files(options: Options) -> list[Path]:
    """Leaves out the examples, which may be in the same folder."""
    files = record_files(options)
    return files if len(files) == 1 else [file for file in files if file.name == "test.jsonl"]


def _problems(data: str) -> list[Record]:
    folder = data and not data.startswith(PREFIX) and os.path.isdir(user_path(data))
    records = read_records(Path(user_path(data)) / "test.jsonl" if folder else data, FIELDS)
    return [{**record, "number": number} for number, record in enumerate(records)]


def _task(record: Record, prompt: str, reference: str | None = None) -> Task:
    answer = last_number(record["answer"])
    if answer is None:
        end = record["answer"][-60:]
        raise UserError(f"{record['place']}: answer must hold a number, not {end!r}")
    return Task(str(record["number"]), prompt, reference=reference, record={"answer": answer})


def _without_notes(answer: str) -> str:
    """Leaves out the calculator's notes <<...>>."""
    return re.sub(r"<<[^>]*>>", "", answer)


def _program_of(question: str) -> str:
    return f"Q: {question}\n\n# solution in Python:\n\n\n"


def last_number(text: str) -> float | None:
    """Returns the number after `####` or "the answer is", else the last one."""
    text = MINUS_CURRENCY.sub("-", MINUS.sub("-", text))
    marked = re.split(r"####|[Tt]he answer is", text)
    found = NUMBER.findall(marked[-1])
    if not found:
        return None
    number = found[0] if len(marked) > 1 else found[-1]
    return float(number.replace(",", ""))


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    written = last_number(sample["completion"])
    return {
        "solved": float(written is not None and abs(written - task.record["answer"]) < PRECISION)
    }


def _checks(task: Task, completion: str) -> list[Check]:
    def accepts(verdict: Verdict) -> bool:
        with contextlib.suppress(ValueError):
            return (
                passed(verdict) and abs(float(verdict.stdout) - task.record["answer"]) < PRECISION
            )
        return False

    return [
        Check(
            Program(
                task.task_id, "python", f"{completion}\nprint(solution())\n", TIMEOUT, rule="output"
            ),
            accepts,
        )
    ]


SUITE = Suite(
    load,
    ShotOptions,
    checksums=("ae6a977c3224d773ee7384cbf8d047eca5ac483cc88a182edc96fa2a90c2c31e",),
    published_files=_test_files,
)
PROGRAMS = Suite(load_programs, ShotOptions)
