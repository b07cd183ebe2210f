"""Answers of a model as JSON lines, in the public harness' format: written as they come, read again after a kill."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.evaluation.benchmarks.benchmark import Benchmark, Sample
from codellama_jax.training.checkpoint import warn

Key = tuple[str, int]  # task_id, number of the sample


def key(line: dict[str, Any]) -> Key:
    return line["task_id"], line["sample"]


def name_of(task_id: str, number: int) -> str:
    """Returns a sample's key as one string: a key of JSON, and what its chance hangs on."""
    return f"{task_id} {number}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines. A last line that was not written to its end is left out with a warning; any other fault is a UserError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"line {number} of {path} is not JSON: {line[:60]}") from None
            warn(f"warning: the last line of {path} was not written to its end, and is ignored")
    return found


def read_samples(path: Path, benchmark: Benchmark) -> dict[Key, Sample]:
    """Reads samples to score. Those without a number are numbered in their order.

    Raises UserError for a sample of an unknown task, without a completion, or twice there, and for tasks without a sample.
    """
    tasks = {task.task_id: task for task in benchmark.tasks}
    samples: dict[Key, Sample] = {}
    seen: Counter[str] = Counter()
    for number, line in enumerate(read_lines(path), 1):
        place, task_id = f"sample {number} of {path}", line.get("task_id") if isinstance(line, dict) else None
        if task_id not in tasks:
            raise UserError(f"{place} is for {task_id!r}, which is no task of {benchmark.name}")
        answer = "log_likelihoods" if tasks[task_id].choices else "completion"
        if not isinstance(line.get(answer), list if tasks[task_id].choices else str):
            raise UserError(f"{place} has no {answer}")
        sample = {**line, "sample": line.get("sample", seen[task_id])}
        if key(sample) in samples:
            raise UserError(f"{place} is sample {sample['sample']} of {task_id} once more: keep one of them")
        samples[key(sample)] = sample
        seen[task_id] += 1
    lacking = [task_id for task_id in tasks if not seen[task_id]]
    if lacking:
        raise UserError(f"{path} has no sample of {len(lacking)} of {len(tasks)} tasks: {', '.join(lacking[:3])}")
    return samples


def continue_file(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a file that is written with `append`, and cuts off what a kill left unfinished at its end."""
    if not path.exists():
        return []
    lines, whole = read_lines(path), path.read_bytes()
    if not whole.endswith(b"\n"):
        os.truncate(path, whole.rfind(b"\n") + 1)
    return lines if whole.endswith(b"\n") else lines[: whole.count(b"\n")]


def append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Adds lines; a kill after this loses none of them."""
    with path.open("a") as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in lines))
