"""The folder that an evaluation writes to, and the settings that its samples were drawn with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codellama_jax.benchmarks.samples import make_folder
from codellama_jax.benchmarks.settings import AUTO, NO_CHAT
from codellama_jax.config import differences
from codellama_jax.errors import UserError
from codellama_jax.system.files import is_bucket, read_json, user_path, write_json

# Settings that may change when an evaluation continues.
FREE = ("settings.samples", "settings.batch_tokens")
# Values of folders that were written before there was such a setting.
EARLIER: dict[str, dict[str, Any]] = {
    "settings": {"beams": 1, "length_penalty": 1.0, "chat_format": NO_CHAT},
    "options": {"prompt": "code_llama"},
}
# So the lines of `differences` start that are about the model, its chat format, and the data.
MODEL_LINE = "model: "
CHAT_LINE = "settings.chat_format: "
DATA_LINE, TASKS_LINE = "options.data: ", "tasks: "


def local_folder(name: str | Path) -> Path:
    """Returns the path of --out. Raises UserError for a file or an address in an object store."""
    if is_bucket(name):
        raise UserError(f"--out {name} must be a local folder: results are added line by line")
    path = Path(user_path(name))
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path} is a file: name a folder with --out")
    except OSError as error:
        # The name is too long, or a parent is not readable.
        raise UserError(f"--out {str(path)[:200]}: {error.strerror}") from None
    return path


@contextlib.contextmanager
def removed_if_empty(out: Path) -> Iterator[None]:
    """Removes folders that the block made and left empty, as an evaluation that is refused does."""
    made = []
    # From the inside outwards, up to the first folder that existed before.
    for folder in (out, *out.parents):
        if folder.exists():
            break
        made.append(folder)
    try:
        yield
    finally:
        for folder in made:
            # A folder with files stays, and so do those around it.
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_same(out: Path, request: Mapping[str, Any], model_known: bool = True) -> None:
    """Raises UserError if the folder holds samples that were drawn with other settings.

    Without `model_known` the model is not compared, because it is not loaded yet.
    """
    file = out / "settings.json"
    if not file.exists():
        return
    stored = read_json(file)
    if not isinstance(stored, dict):
        # Another program's settings.json must not be overwritten.
        raise UserError(f"{file} must hold an object: remove it or choose another --out")
    # The file holds lists where `request` holds tuples.
    requested = json.loads(json.dumps(request))
    ignored = FREE if model_known else (*FREE, MODEL_LINE)
    settings = requested.get("settings", {})
    if not model_known and settings.get("chat_format") == AUTO:
        # The model decides it.
        ignored = (*ignored, CHAT_LINE)
    # Only folders of earlier versions are tied to the path of the data: they lack its content.
    if "tasks" in stored and "tasks" in requested:
        ignored = (*ignored, DATA_LINE)
    else:
        ignored = (*ignored, TASKS_LINE)
    changes = []
    for line in differences(_completed(stored, requested), requested):
        if line.startswith(ignored):
            continue
        is_hash = line.startswith(TASKS_LINE)
        changes.append("the tasks are not the same" if is_hash else line)
    if changes:
        reasons = "; ".join(changes)
        raise UserError(
            f"{out} holds samples drawn in another way ({reasons}): choose another --out"
        )


def _completed(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, Any]:
    """Returns stored settings with the fields that settings have today.

    Earlier versions wrote the options of all suites, and lack the settings of EARLIER.
    """
    completed = dict(stored)
    for part, values in EARLIER.items():
        if isinstance(stored.get(part), dict):
            completed[part] = {**values, **stored[part]}
    options = completed.get("options")
    if isinstance(options, dict) and isinstance(requested.get("options"), dict):
        kept = {name: value for name, value in options.items() if name in requested["options"]}
        completed["options"] = kept
    return completed


def open_folder(out: Path, request: Mapping[str, Any]) -> None:
    """Makes the folder and writes its settings; checks them if the folder already has some."""
    check_same(out, request)
    make_folder(out)
    write_json(out / "settings.json", request)
