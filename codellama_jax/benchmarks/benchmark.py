"""Tasks of a benchmark, where generated text is truncated, and how it is checked and judged."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codellama_jax.benchmarks import published
from codellama_jax.benchmarks.data_files import Value, read_values
from codellama_jax.benchmarks.fields import Kind, check_record
from codellama_jax.benchmarks.paper import Paper
from codellama_jax.benchmarks.settings import Settings
from codellama_jax.errors import UserError
from codellama_jax.generation.stop import until as cut_before
from codellama_jax.sandbox import Program, Verdict
from codellama_jax.system.files import check_not_root, is_bucket, read_file, user_path

Record = Mapping[str, Any]  # one record of a published file
Sample = dict[str, Any]  # one answer of a model: task_id, sample, and completion or log_likelihoods
RECORD_FILES = (".jsonl", ".jsonl.gz", ".json")
PROMPT_SPACE = " \n\t\r"


@dataclass(frozen=True)
class Task:
    """One question. The model goes on from `prompt`, fills in before `suffix`, or weighs
    `choices`.
    """

    task_id: str
    prompt: str
    suffix: str = ""
    choices: tuple[str, ...] = ()
    reference: str | None = None  # what a model that knows the answer writes after the prompt
    group: str = ""  # a part of the benchmark that is reported on its own as well
    record: Mapping[str, Any] = field(default_factory=dict)


def passed(verdict: Verdict) -> bool:
    """Returns whether the program passed its tests."""
    return verdict.status == "passed"


@dataclass(frozen=True)
class Check:
    """A program and what its verdict must be."""

    program: Program
    accepts: Callable[[Verdict], bool] = passed


@dataclass(frozen=True)
class Benchmark:
    """Tasks and how they are asked and judged.

    `cut` and `finish` run in this order on what the model writes.
    """

    name: str
    tasks: Sequence[Task]
    infilling: bool = False
    max_new_tokens: int = 512
    temperature: float = 0.8  # of the paper, for more than one sample
    # The text up to where it ends; more text never moves that end
    cut: Callable[[Task, str], str] = lambda task, text: text
    # The completion, as the published harness takes it
    finish: Callable[[Task, str], str] = lambda task, text: text
    # Programs that must all be accepted; run one after the other
    checks: Callable[[Task, str], list[Check]] | None = None
    # The same for a complete program instead of a completion
    program_checks: Callable[[Task, str], list[Check]] | None = None
    # Measures of a sample that take no program, by name: each from 0 to 1, reported as a mean
    judge: Callable[[Task, Sample], dict[str, float]] | None = None
    paper: Paper | None = None  # the papers' numbers of these measures
    own_tasks: str = ""  # why the tasks are not the published ones, where an option changes them

    def __post_init__(self):
        double = [
            task_id
            for task_id, count in Counter(task.task_id for task in self.tasks).items()
            if count > 1
        ]
        if double:
            raise UserError(
                f"the data of {self.name} holds {double[0]} more than once: give one file of "
                "each kind"
            )
        if not self.tasks:
            raise UserError(f"the data of {self.name} holds no task")


def temperature_of(benchmark: Benchmark, settings: Settings) -> float:
    """Returns the temperature given, else 0 for one sample and the paper's for more."""
    if settings.temperature is not None:
        return settings.temperature
    return 0.0 if settings.samples == 1 else benchmark.temperature


def until(stops: Sequence[str]) -> Callable[[Task, str], str]:
    """Returns the cut before the first stop string."""
    return lambda task, text: cut_before(text, stops)


def stripped(prompt: str) -> tuple[str, str]:
    """Returns a prompt as the model sees it, without white space at its ends, and the space that
    was behind it.

    SentencePiece then begins the answer with the pieces that it was trained on (BigCode's harness
    does the same).
    """
    seen = prompt.strip(PROMPT_SPACE)
    return seen, prompt[len(prompt.rstrip(PROMPT_SPACE)) :]


def after_space(space: str, text: str) -> str:
    """Undoes `stripped` for what the model wrote.

    A completion of the whole prompt, so that public harnesses can score it.
    """
    return text.removeprefix(space)


def files_of(path: str, kinds: Sequence[str]) -> list[Path]:
    """Returns a file, or the files of a folder with these endings, sorted.

    Raises UserError where there is none.
    """
    if not path:
        raise UserError("pass --data, the benchmark's file or folder")
    if is_bucket(path):
        raise UserError(f"--data {path}: benchmarks are read from local files; copy it here first")
    place = Path(user_path(path))
    if not os.path.exists(place):  # False also for a name that is too long, where a Path raises
        raise UserError(f"--data: no file or folder {path[:200]}")
    if not place.is_dir():
        return [place]
    check_not_root(place, f"--data {path[:200]}")
    files = [file for file in place.rglob("*") if file.name.endswith(tuple(kinds))]
    files = sorted(file for file in files if file.is_file())
    if not files:
        raise UserError(f"--data: {path} holds no {' or '.join(kinds)} file")
    return files


def text_of(file: Path) -> str:
    """Returns the text of a source file; bytes that are not UTF-8 become U+FFFD."""
    text = read_file(file).decode(errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_records(path: str | Path, fields: Mapping[str, Kind]) -> list[Record]:
    """Reads the records of .jsonl, .jsonl.gz and .json files and checks their `fields`.

    Each record also gets `file`, the stem of its file's name, and `place`, for messages.

    Raises UserError naming the file, line, field, value and expected type of the first fault.
    """
    records: list[Record] = []
    if str(path).startswith(published.PREFIX):
        name = str(path).removeprefix(published.PREFIX)
        downloaded = published.records(name)
        values = [Value(f"record {n} of {name}", value) for n, value in enumerate(downloaded, 1)]
        return _checked(values, fields, name)
    for file in files_of(str(path), RECORD_FILES):
        stored = read_values(file)
        if stored.unfinished:
            raise UserError(f"the last line of {file} was not written to its end: copy it again")
        records += _checked(stored.values, fields, file.name.split(".")[0])
    return records


def _checked(values: Sequence[Value], fields: Mapping[str, Kind], file: str) -> list[Record]:
    for place, record in values:
        check_record(record, fields, place)
    return [{**record, "file": file, "place": place} for place, record in values]
