"""Files of samples and results: JSON lines in the format of HumanEval's public harness.

Lines are appended while an evaluation runs, and read again when it continues after a kill. Imports
neither JAX nor Flax.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from codellama_jax.benchmarks.fields import INTEGER, WORD, Kind, check_record
from codellama_jax.errors import UserError
from codellama_jax.system.files import reason
from codellama_jax.system.json_files import read_values

Key = tuple[str, int]  # task_id, number of the sample
KEY_FIELDS = {"task_id": WORD, "sample": INTEGER}


def key(line: Mapping[str, Any]) -> Key:
    """Returns the task and number that identify a sample."""
    return line["task_id"], line["sample"]


def name_of(task_id: str, number: int) -> str:
    """Returns a sample's key as one string, for JSON objects and to derive its PRNG key."""
    return f"{task_id} {number}"


def read_own_lines(path: Path, fields: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """Returns the lines of a file that `append` wrote, without an unfinished last line.

    Raises UserError naming the first line that has other fields.
    """
    # A kill before the first line leaves an empty file, which the JSON reader would refuse.
    if path.is_file() and not path.stat().st_size:
        return []
    values = read_values(path, only_lines=True)
    if values.unfinished:
        # A warning, not an error: the sample is drawn or scored again.
        print(f"the last line of {path} is not complete and is ignored", file=sys.stderr)
    lines = []
    for place, line in values.values:
        try:
            check_record(line, {**KEY_FIELDS, **fields}, place)
        except UserError as error:
            message = f"{error}; `evaluate` did not write it: remove it or choose another --out"
            raise UserError(message) from None
        lines.append(line)
    return lines


def continue_file(path: Path, fields: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """Returns the lines of a file, and truncates the file after its last complete line.

    A last line without a newline is dropped, whether it is valid JSON or not.
    """
    if not path.exists():
        return []
    lines = read_own_lines(path, fields)
    data = path.read_bytes()
    if data.endswith(b"\n"):
        return lines
    # Otherwise the next line would be appended to the incomplete one.
    os.truncate(path, data.rfind(b"\n") + 1)
    # read_own_lines may have taken an incomplete last line that is valid JSON by accident.
    return lines[: data.count(b"\n")]


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines; a kill after this loses none of them. Raises UserError for a full disk."""
    try:
        with path.open("a", encoding="utf-8") as file:
            # One write per batch; closing the file hands the data to the operating system.
            file.write("".join(f"{json.dumps(line)}\n" for line in lines))
    except OSError as error:
        message = f"cannot write {path}: {reason(error)}; the same command continues from there"
        raise UserError(message) from error


def make_folder(path: Path) -> None:
    """Makes a folder and its parents. Raises UserError naming it if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {reason(error)}") from error
