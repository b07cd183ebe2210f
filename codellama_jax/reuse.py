"""Equal stages are trained once: what makes two of them equal, and where the one that was trained lies. Starts no JAX."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from codellama_jax.config import Stage, leaves, to_dict

# What may change between two starts of a run, or differ between equal stages: where and how it computes, not what.
FREE = ("mesh.", "probes.", "seeds", ".remat", ".attention", ".micro_batches", ".log_every", ".checkpoint_every", ".keep_checkpoints")
IDENTITY, DONE = "identity.txt", "done.json"
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
    """Returns where a stage was trained: the folder itself, or the one that its done.json names."""
    done = folder / DONE
    at = json.loads(done.read_text()).get("at") if done.exists() else None
    if at is None:
        return folder
    return type(folder)(at if "://" in at else os.path.normpath(folder / at))


def point(folder: Any, stage: Stage, trained: Any) -> None:
    """Makes the folder of a stage that was trained elsewhere; relative to it where both are local, so that they can move together."""
    remote = "://" in str(folder) or "://" in str(trained)
    at = str(trained) if remote else os.path.relpath(trained, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(stage), indent=1))
    (folder / DONE).write_text(json.dumps({"at": at}))


def trained_under(runs: Any) -> dict[str, Any]:
    """Returns the finished stages of the runs in a folder, by identity, without those of runs that were set aside."""
    kept = (run for run in sorted(runs.glob("*")) if not (run / ASIDE).exists())
    found = {path.read_text(): path.parent for run in kept for path in sorted(run.glob(f"*/*/{IDENTITY}"))}
    return {identity: folder for identity, folder in found.items() if is_trained(folder)}


def is_trained(folder: Any) -> bool:
    """Tells whether the stage of this folder has finished, here or where the folder points."""
    return (followed(folder) / DONE).exists()


def identity_of(folder: Any) -> str:
    """Returns the identity that a stage had when it was begun, "" if it was begun by a version that kept none."""
    path = folder / IDENTITY
    return path.read_text() if path.exists() else ""
