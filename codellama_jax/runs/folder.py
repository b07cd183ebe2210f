"""The folder of a run: checked against the experiment, locked, set aside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from etils import epath

from codellama_jax.checkpoints import folder as reuse
from codellama_jax.checkpoints.identity import changes
from codellama_jax.config import Experiment, to_dict
from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import on_first_host, say
from codellama_jax.system import locks
from codellama_jax.system.console import warn
from codellama_jax.system.files import delete_file, read_state, write_file, write_json


def check_folder(experiment: Experiment, out: epath.Path) -> None:
    """Raises UserError with the difference if the folder holds a run of another config."""
    config = out / "config.json"
    if not config.exists():
        return
    old = read_state(config)
    if old is None:  # damaged: what is left to compare are the configs of the stages
        changed = stage_changes(experiment, out)
    else:
        changed = changes(old, experiment)
    if changed:
        raise UserError(
            f"{out} holds a run with another config ({'; '.join(changed)}):"
            " choose another --out, or --fresh to set it aside"
        )


def stage_changes(experiment: Experiment, out: epath.Path) -> list[str]:
    """Lists what differs from the configs that the stages' own folders hold."""
    changed = []
    for arm, chain in experiment.arms.items():
        for name, stage in chain.items():
            old = read_state(out / arm / name / "config.json")
            if old is not None:
                changed += changes(old, stage, f"arms.{arm}.{name}.")
    return changed


@contextlib.contextmanager
def opened_folder(experiment: Experiment, out: epath.Path, fresh: bool) -> Iterator[None]:
    """Makes the run's folder and keeps other processes from writing to it within the block.

    A fresh run renames the folder that exists. Raises UserError if another process writes to it,
    or if it holds a run of another config.
    """
    with contextlib.ExitStack() as held:

        def open_here() -> None:
            if fresh and out.exists():
                set_aside(out)
            held.enter_context(locks.sole_writer(out))
            check_folder(experiment, out)  # again: another process may have written it meanwhile
            if (out / "config.json").exists() and read_state(out / "config.json") is None:
                warn(f"warning: {out / 'config.json'} is damaged and is written again")
            write_json(out / "config.json", to_dict(experiment))

        on_first_host(open_here)
        yield


def set_aside(out: epath.Path) -> None:
    """Renames the folder of a run to the first free name, unless it is being written."""
    with locks.sole_writer(out):
        number = 1
        while (kept := out.with_name(f"{out.name}.{number}")).exists():
            number += 1
        out.rename(kept)
        write_file(kept / reuse.ASIDE, b"")
    delete_file(kept / locks.NAME)
    say(f"the run that was here is now {kept}")
