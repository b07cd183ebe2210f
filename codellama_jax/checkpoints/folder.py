"""Equal stages are trained once: when two are equal, and the folder of the one that was trained.

Starts no JAX.
"""

from __future__ import annotations

import os
import re
from typing import Any

from codellama_jax.config import Stage, to_dict
from codellama_jax.errors import UserError
from codellama_jax.system.files import is_bucket, read_file, read_state, write_json

IDENTITY, DONE = "identity.txt", "done.json"
IDENTITY_FORM = re.compile("[0-9a-f]{32}")
ASIDE = "set_aside"  # a file in a run's folder: nobody asks for its stages any more


def followed(folder: Any) -> Any:
    """Returns the folder where a stage was trained: this one, or the one that its done.json names.

    A damaged done.json counts as absent: the stage is then resumed from its last checkpoint.
    """
    at = (read_state(folder / DONE) or {}).get("at")
    if not isinstance(at, str):
        return folder
    return type(folder)(at if is_bucket(at) else os.path.normpath(folder / at))


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
