"""A benchmark: its tasks, where generated text is truncated, and how answers are checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codellama_jax.benchmarks.fields import Kind, check_record
from codellama_jax.benchmarks.paper import Paper
from codellama_jax.benchmarks.settings import Settings
from codellama_jax.data import downloads
from codellama_jax.data.functions import Function
from codellama_jax.errors import UserError
from codellama_jax.generation import stop
from codellama_jax.sandbox import Program, Verdict
from codellama_jax.system.files import check_not_root, is_bucket, read_file, user_path
from codellama_jax.system.json_files import Value, read_values

Record = Mapping[str, Any]  # one record of a published file
Sample = dict[str, Any]  # one answer of a model: task_id, sample, and completion or log_likelihoods
RECORD_FILES = (".jsonl", ".jsonl.gz", ".json")
# White space that `stripped` removes, as in BigCode's harness.
PROMPT_SPACE = " \n\t\r"


@dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    The model continues `prompt`, or fills in the text between `prompt` and `suffix`, or scores
    each of `choices` after `prompt`.

    Attributes:
        task_id: unique in the benchmark.
        prompt: the text before the answer.
        suffix: the text after the answer, for infilling.
        choices: possible answers, for multiple choice.
        reference: the text that a perfect model would write, if it is published.
        group: a part of the benchmark whose result is also reported separately.
        record: the published record.
    """

    task_id: str
    prompt: str
    suffix: str = ""
    choices: tuple[str, ...] = ()
    reference: str | None = None
    group: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


def passed(verdict: Verdict) -> bool:
    """Returns whether the program passed its tests."""
    return verdict.status == "passed"


@dataclass(frozen=True)
class Check:
    """A program, and a function that decides whether its verdict is accepted."""

    program: Program
    accepts: Callable[[Verdict], bool] = passed


def unchanged(task: Task, text: str) -> str:
    """Returns `text`: the default of `Benchmark.truncate` and `Benchmark.finish`."""
    return text


def _completion(task: Task, text: str) -> dict[str, Any]:
    """Returns the answer itself: the default of `ChatForm.fields`."""
    return {"completion": text}


@dataclass(frozen=True)
class ChatForm:
    """How a model that was trained on conversations is prompted with a task.

    Attributes:
        question: returns the message of the user.
        fields: returns the fields of the sample that an answer makes, such as `solution`, a
            complete program.
    """

    question: Callable[[Task], str]
    fields: Callable[[Task, str], dict[str, Any]] = _completion


@dataclass(frozen=True)
class Benchmark:
    """Tasks, how a model is prompted with them, and how its answers are measured.

    `truncate` and then `finish` are applied to the text that the model writes.

    Attributes:
        name: of the benchmark, in results and messages.
        tasks: at least one; the task ids are unique.
        infilling: whether tasks have a suffix.
        max_new_tokens: tokens of an answer at most.
        temperature: the paper's for more than one sample per task.
        top_p: the paper's.
        draws_one: whether the paper draws a single sample at its temperature too.
        truncate: returns the text up to its end. It must be monotone: appending text never moves
            the end.
        finish: returns the completion in the form that the published harness takes.
        checks: returns the programs that test a completion. They run one after the other, and all
            must be accepted. None for a benchmark without programs.
        program_checks: like `checks`, for a complete program instead of a completion.
        judge: returns measures of a sample that need no program, by name. Each is from 0 to 1,
            unless `unit` is another one, and reported as a mean.
        documented: returns the function that a completion of a documented function makes, for
            ranking by back-translation. None for a benchmark without docstrings.
        chat: how chat models are prompted; None for a benchmark that they continue as others do.
        paper: the papers' numbers for these measures.
        unit: of the judge's measures; those that are not in percent are reported as they are.
        task_difference: the difference of the tasks from the papers', because of which the papers'
            numbers are not compared with these; "" without one.

    Raises UserError if a task id occurs twice, or if there is no task.
    """

    name: str
    tasks: Sequence[Task]
    infilling: bool = False
    max_new_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.95
    draws_one: bool = False
    truncate: Callable[[Task, str], str] = unchanged
    finish: Callable[[Task, str], str] = unchanged
    checks: Callable[[Task, str], list[Check]] | None = None
    program_checks: Callable[[Task, str], list[Check]] | None = None
    judge: Callable[[Task, Sample], dict[str, float]] | None = None
    documented: Callable[[Task, str], Function] | None = None
    chat: ChatForm | None = None
    paper: Paper | None = None
    unit: str = "percent"
    task_difference: str = ""

    def __post_init__(self) -> None:
        # Samples are matched to tasks by these ids.
        counts = Counter(task.task_id for task in self.tasks)
        repeated = [task_id for task_id, count in counts.items() if count > 1]
        if repeated:
            raise UserError(
                f"the data of {self.name} holds {repeated[0]} more than once: give one file of "
                "each kind"
            )
        if not self.tasks:
            raise UserError(f"the data of {self.name} holds no task")

    def fingerprint(self) -> str:
        """Returns a hash of the tasks that models see, wherever their files are."""
        seen = []
        for task in self.tasks:
            seen.append((task.task_id, task.prompt, task.suffix, task.choices))
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def with_defaults(benchmark: Benchmark, settings: Settings) -> Settings:
    """Returns settings with a temperature and top-p: the paper's where none is given.

    The temperature is 0 for one sample and for beam search, unless the paper draws even one.
    """
    temperature, top_p = settings.temperature, settings.top_p
    if temperature is None:
        # Several samples at temperature 0 would all be equal; a beam search draws nothing.
        is_drawn = (settings.samples > 1 or benchmark.draws_one) and settings.beams == 1
        temperature = benchmark.temperature if is_drawn else 0.0
    top_p = benchmark.top_p if top_p is None else top_p
    return replace(settings, temperature=temperature, top_p=top_p)


def until(stops: Sequence[str]) -> Callable[[Task, str], str]:
    """Returns a `Benchmark.truncate` that stops before the first of the stop strings."""

    def truncate(task: Task, text: str) -> str:
        return stop.until(text, stops)

    return truncate


def stripped(prompt: str) -> tuple[str, str]:
    """Returns the prompt without white space at its ends, and the white space that followed it.

    SentencePiece tokens start with a space or newline. A prompt that ends with white space would
    force the model to continue after a token that it rarely saw in training; without it the answer
    starts with usual tokens. BigCode's harness strips prompts as well.
    """
    space = prompt[len(prompt.rstrip(PROMPT_SPACE)) :]
    return prompt.strip(PROMPT_SPACE), space


def after_space(space: str, text: str) -> str:
    """Returns the completion of the original prompt from that of the stripped prompt.

    The model wrote `text` after `stripped` had removed `space`. Public harnesses append the
    completion to the original prompt.
    """
    return text.removeprefix(space)


def files_of(path: str, kinds: Sequence[str], option: str = "--data") -> list[Path]:
    """Returns a file itself, or the sorted files below a folder whose names end with a kind.

    Raises UserError, which names the `option` that holds `path`, if there is none.
    """
    if not path:
        raise UserError(f"pass {option}, the benchmark's file or folder")
    if is_bucket(path):
        fix = "benchmarks are read from local files; copy it here first"
        raise UserError(f"{option} {path}: {fix}")
    local_path = Path(user_path(path))
    # os.path.exists returns False for a name that is too long; Path.exists raises.
    if not os.path.exists(local_path):
        raise UserError(f"{option}: no file or folder {path[:200]}")
    if not local_path.is_dir():
        return [local_path]
    # Searching a root directory would take minutes and read files of others.
    check_not_root(local_path, f"{option} {path[:200]}")
    files = [file for file in local_path.rglob("*") if file.name.endswith(tuple(kinds))]
    # Sorted: task numbers must not depend on the file system.
    files = sorted(file for file in files if file.is_file())
    if not files:
        raise UserError(f"{option}: {path} holds no {' or '.join(kinds)} file")
    return files


def text_of(file: Path) -> str:
    """Returns the text of a source file; bytes that are not UTF-8 become U+FFFD."""
    # Filler and long documents are any text: one bad byte must not end an evaluation.
    text = read_file(file).decode(errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_records(
    path: str | Path, fields: Mapping[str, Kind], option: str = "--data"
) -> list[Record]:
    """Reads the records of .jsonl, .jsonl.gz and .json files and checks their `fields`.

    `option` is the one that holds `path`, for messages.

    Each record also gets `file`, the file's name without its ending, and `place`, where the record
    is, for messages.

    Raises UserError naming the file, line, field, value and expected type of the first fault.
    """
    records: list[Record] = []
    if str(path).startswith(downloads.PREFIX):
        name = str(path).removeprefix(downloads.PREFIX)
        downloaded = downloads.records(name)
        # A download has no lines or file that a message could name, so that records are numbered.
        values = [Value(f"record {n} of {name}", value) for n, value in enumerate(downloaded, 1)]
        return _checked(values, fields, name)
    for file in files_of(str(path), RECORD_FILES, option):
        stored = read_values(file)
        # A truncated copy would silently drop the last task.
        if stored.unfinished:
            raise UserError(f"the last line of {file} was not written to its end: copy it again")
        records += _checked(stored.values, fields, file.name.split(".")[0])
    return records


def _checked(values: Sequence[Value], fields: Mapping[str, Kind], file: str) -> list[Record]:
    # All records are checked before the first is used.
    for place, record in values:
        check_record(record, fields, place)
    return [{**record, "file": file, "place": place} for place, record in values]
