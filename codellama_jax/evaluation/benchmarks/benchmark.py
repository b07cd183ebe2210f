"""What a benchmark is: tasks, where a text of the model ends, the programs that check it, and how it is judged."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.evaluation.benchmarks import published
from codellama_jax.evaluation.execute import Program, Verdict
from codellama_jax.generation.text import until as cut_before

Record = dict[str, Any]  # one record of a published file
Sample = dict[str, Any]  # one answer of a model: task_id, sample, and completion or log_likelihoods
PROMPT_SPACE = " \n\t\r"


@dataclass(frozen=True)
class Task:
    """One question. The model goes on from `prompt`, fills in before `suffix`, or weighs `choices`."""

    task_id: str
    prompt: str
    suffix: str = ""
    choices: tuple[str, ...] = ()
    reference: str | None = None  # what a model that knows the answer writes after the prompt
    group: str = ""  # a part of the benchmark that is reported on its own as well
    record: Mapping[str, Any] = field(default_factory=dict)


def passed(verdict: Verdict) -> bool:
    return verdict.status == "passed"


@dataclass(frozen=True)
class Check:
    """A program and what its verdict must be."""

    program: Program
    accepts: Callable[[Verdict], bool] = passed


@dataclass(frozen=True)
class Benchmark:
    """Tasks and how they are asked and judged. `cut` and `finish` run in this order on what the model writes."""

    name: str  # that of its numbers in `paper.py`
    tasks: Sequence[Task]
    infilling: bool = False
    max_new_tokens: int = 512
    temperature: float = 0.8  # of the paper, for more than one sample
    cut: Callable[[Task, str], str] = lambda task, text: text  # the text up to where it ends; more text never moves that end
    finish: Callable[[Task, str], str] = lambda task, text: text  # the completion, as the published harness takes it
    checks: Callable[[Task, str], list[Check]] | None = None  # programs that must all be accepted; run one after the other
    judge: Callable[[Task, Sample], dict[str, float]] | None = None  # measures that take no program

    def __post_init__(self):
        double = [task_id for task_id, count in Counter(task.task_id for task in self.tasks).items() if count > 1]
        if double:
            raise UserError(f"the data of {self.name} holds {double[0]} more than once: give one file of each kind")
        if not self.tasks:
            raise UserError(f"the data of {self.name} holds no task")


def until(stops: Sequence[str]) -> Callable[[Task, str], str]:
    """Returns the cut before the first stop string."""
    return lambda task, text: cut_before(text, stops)


def stripped(prompt: str) -> tuple[str, str]:
    """Returns a prompt as the model sees it, without white space at its ends, and the space that was behind it.

    SentencePiece then begins the answer with the pieces that it was trained on (BigCode's harness does the same).
    """
    seen = prompt.strip(PROMPT_SPACE)
    return seen, prompt[len(prompt.rstrip(PROMPT_SPACE)) :]


def after_space(space: str, text: str) -> str:
    """Undoes `stripped` for what the model wrote: a completion of the whole prompt, so that public harnesses can score it."""
    return text.removeprefix(space)


def files_of(path: str, kinds: Sequence[str]) -> list[Path]:
    """Returns a file, or the files of a folder with these endings, sorted. Raises UserError where there is none."""
    if not path:
        raise UserError("pass --data, the benchmark's file or folder")
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"no file or folder {path}: pass --data")
    found = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file() and f.name.endswith(tuple(kinds)))
    if not found:
        raise UserError(f"{path} holds no {' or '.join(kinds)} file: pass --data")
    return found


def read_records(path: str | Path, needed: Sequence[str]) -> list[Record]:
    """Reads the records of .jsonl, .jsonl.gz and .json files. Each also gets `file`, the stem of its file's name.

    Raises UserError naming what is not a record, or which of the `needed` fields it lacks.
    """
    if str(path).startswith(published.PREFIX):
        name = str(path).removeprefix(published.PREFIX)
        return _named(published.records(name), needed, name)
    return [record for file in files_of(str(path), (".jsonl", ".jsonl.gz", ".json")) for record in _records(file, needed)]


def _records(file: Path, needed: Sequence[str]) -> list[Record]:
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.name.endswith(".gz") else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    if file.name.endswith(".json"):
        records = _parsed(text, f"{file}")
        records = records if isinstance(records, list) else [records]
    else:
        records = [_parsed(line, f"line {n} of {file}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _named(records, needed, file.name.split(".")[0])


def _named(records: list[Any], needed: Sequence[str], file: str) -> list[Record]:
    for number, record in enumerate(records, 1):
        lacking = [name for name in needed if not isinstance(record, dict) or name not in record]
        if lacking:
            raise UserError(f"record {number} of {file} has no {', '.join(lacking)}: it is a file of another benchmark")
    return [{**record, "file": file} for record in records]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
