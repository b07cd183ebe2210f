"""The folder of a run: checked against the experiment, locked, set aside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.checkpoints.identity import changes
from codellama_jax.config import Experiment, to_dict
from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import on_first_host, say
from codellama_jax.system import locks
from codellama_jax.system.console import warn
from codellama_jax.system.files import (
    delete_file,
    read_state,
    user_path,
    write_file,
    write_json,
)


def check_folder(experiment: Experiment, run: RunFolder) -> None:
    """Raises UserError with the difference if the folder holds a run of another config."""
    if not run.config.exists():
        return
    old = read_state(run.config)
    if old is None:  # damaged: the configs of the stages are still there to compare
        changed = stage_changes(experiment, run)
    else:
        changed = changes(old, experiment)
    if changed:
        raise UserError(
            f"{run} holds a run with another config ({'; '.join(changed)}):"
            " choose another --out, or --fresh to set it aside"
        )


def stage_changes(experiment: Experiment, run: RunFolder) -> list[str]:
    """Lists the differences from the configs in the folders of the stages."""
    changed = []
    for arm, chain in experiment.arms.items():
        for name, stage in chain.items():
            old = read_state(run.stage(arm, name).config)
            if old is not None:
                changed += changes(old, stage, f"arms.{arm}.{name}.")
    return changed


def check_other_runs(path: str) -> None:
    """Raises UserError if the folder of other runs, of the option `--reuse`, is itself a run.

    None of its stages would be found. It may not exist yet: the first of several runs makes it.
    """
    config = read_state(RunFolder(user_path(path)).config) or {}
    if "arms" in config:
        raise UserError(
            f"--reuse is {path}, which is a run: name the folder that holds it and other runs"
        )


@contextlib.contextmanager
def opened_folder(experiment: Experiment, run: RunFolder, fresh: bool) -> Iterator[None]:
    """Makes the run's folder and keeps other processes from writing to it within the block.

    A fresh run renames the folder that exists. Raises UserError if another process writes to it,
    or if it holds a run of another config.
    """
    with contextlib.ExitStack() as held:

        def open_here() -> None:
            if fresh and run.path.exists():
                set_aside(run)
            held.enter_context(locks.sole_writer(run.path))
            check_folder(experiment, run)  # again: another process may have written it meanwhile
            if run.config.exists() and read_state(run.config) is None:
                warn(f"warning: {run.config} is damaged and is written again")
            write_json(run.config, to_dict(experiment))

        # The other hosts share the folder and would find the lock held.
        on_first_host(open_here)
        yield


def set_aside(run: RunFolder) -> None:
    """Renames the folder of a run to the first free name, unless it is being written."""
    # A run that is being written keeps its name.
    with locks.sole_writer(run.path):
        number = 1
        while (kept := run.path.with_name(f"{run.path.name}.{number}")).exists():
            number += 1
        run.path.rename(kept)
        write_file(RunFolder(kept).set_aside, b"")
    # The lock file was renamed with the folder, where its holder does not look for it.
    delete_file(kept / locks.NAME)
    say(f"the run that was here is now {kept}")
