"""Equal stages are trained once: when two are equal, and the folder of the one that was trained.

Starts no JAX.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from codellama_jax.config import Stage, leaves, to_dict
from codellama_jax.errors import UserError
from codellama_jax.system.files import is_bucket, read_file, read_state, user_path, write_json

# Fields that do not affect the trained parameters: they are ignored when a run is resumed and when
# stages are compared.
FREE = (
    "mesh.",
    "probes.",
    "seeds",
    ".remat",
    ".attention",
    ".micro_batches",
    ".log_every",
    ".checkpoint_every",
    ".keep_checkpoints",
)
IDENTITY, DONE = "identity.txt", "done.json"
IDENTITY_FORM = re.compile("[0-9a-f]{32}")
ASIDE = "set_aside"  # a file in a run's folder: nobody asks for its stages any more


def free(name: str) -> bool:
    """Tells whether the field of this dotted name may change."""
    return any(part in name for part in FREE)


def identity(stage: Stage, before: str, seed: int, shared: Any = None) -> str:
    """Returns a hash of all that decides what a stage becomes.

    before: the identity of the stage before it, which counts where it starts from that.
    shared: what else decides, ready for JSON: the documents and the tokenizer.
    """
    own = {name: value for name, value in leaves({"": to_dict(stage)}).items() if not free(name)}
    own[".init"] = before if stage.init == "previous" else stage.init
    return hashlib.sha256(json.dumps([own, seed, shared], sort_keys=True).encode()).hexdigest()[:32]


def followed(folder: Any) -> Any:
    """Returns the folder where a stage was trained: this one, or the one that its done.json names.

    A damaged done.json counts as absent: the stage is then resumed from its last checkpoint.
    Raises UserError if done.json names an object store that cannot be read here.
    """
    at = (read_state(folder / DONE) or {}).get("at")
    if not isinstance(at, str):
        return folder
    if not is_bucket(at):
        return type(folder)(os.path.normpath(folder / at))
    try:
        return user_path(at)
    except UserError as error:
        raise UserError(f"{folder / DONE}: {error}") from None


def point(folder: Any, stage: Stage, trained: Any) -> None:
    """Makes the folder of a stage that was trained elsewhere.

    The path is relative where both folders are local, so that they can move together.
    """
    remote = is_bucket(folder) or is_bucket(trained)
    at = str(trained) if remote else os.path.relpath(trained, folder)
    write_json(folder / "config.json", to_dict(stage))
    write_json(folder / DONE, {"at": at})


def trained_under(runs: Any) -> dict[str, Any]:
    """Returns the finished stages of the runs in a folder, by identity.

    Leaves out runs that were set aside, and stages whose identity file is damaged.
    """
    found = {}
    for run in sorted(runs.glob("*")):
        if (run / ASIDE).exists():
            continue
        for path in sorted(run.glob(f"*/*/{IDENTITY}")):
            identity = identity_of(path.parent)
            if identity and is_trained(path.parent):
                found[identity] = path.parent
    return found


def is_trained(folder: Any) -> bool:
    """Tells whether the stage of this folder has finished, here or where the folder points."""
    return read_state(followed(folder) / DONE) is not None


def identity_of(folder: Any) -> str:
    """Returns the identity that a stage had when it was begun.

    It is "" where the file is missing, as in a run of an old version, or damaged.
    """
    try:
        text = read_file(folder / IDENTITY).decode("ascii", "replace")
    except UserError:
        return ""
    return text if IDENTITY_FORM.fullmatch(text) else ""
