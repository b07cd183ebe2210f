"""Orbax checkpoints of a stage in training: asynchronous, atomic, with a checksum per array.

A damaged checkpoint gives way to the one before it, with a warning, on all hosts together. Orbax
writes them, and `loading` reads them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from codellama_jax.checkpoints import checksums
from codellama_jax.checkpoints.base import ITEM
from codellama_jax.checkpoints.loading import (
    first_line,
    read_checksums,
    read_item,
    silence_orbax,
    warn_damaged,
)
from codellama_jax.config import Stage, to_dict
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import checkpoint_bytes
from codellama_jax.sharding.hosts import gather, on_all_hosts
from codellama_jax.system.exits import exit_within
from codellama_jax.system.files import check_no_pipes, is_bucket, read_json

silence_orbax()
LOOP_CLOSED = "Event loop is closed"
print_ignored = sys.unraisablehook


def print_but_late_errors(ignored: Any) -> None:
    """Prints an exception that Python ignores, unless Orbax has given up its read or write.

    After the first error Orbax closes its event loop, while TensorStore's threads still report to
    it and coroutines still wait.
    """
    late = isinstance(ignored.exc_value, RuntimeError) and str(ignored.exc_value) == LOOP_CLOSED
    code = getattr(ignored.object, "cr_code", None)
    if not late and not (code and "orbax" in code.co_filename):
        print_ignored(ignored)


sys.unraisablehook = print_but_late_errors


class State(Protocol):
    """A train state: a dataclass with `replace`, as flax's are."""

    step: jax.Array
    params: dict
    opt_state: Any

    def replace(self, **changes: Any) -> Any:
        """Returns the state with other values of these fields."""


AnyState = TypeVar("AnyState", bound=State)


class Checkpoints:
    """The checkpoints of one stage.

    Each holds parameters, optimizer with its step, the data cursors of every sequence of the batch,
    the config, and the checksums of all of them. A checkpoint of a version that wrote no checksums
    loads unchecked. Of a stage with adapters the parameters are those of the adapters, and a
    reference names the checkpoint of the weights that they are added to (`base.Base`).
    """

    def __init__(self, folder: epath.Path, stage: Stage):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=stage.keep_checkpoints,
            create=True,
            step_prefix="step",
            cleanup_tmp_directories=True,
        )
        self.folder, self.stage, self.failed = folder, stage, False
        # Orbax lists and opens the files itself, and would wait for a pipe.
        check_no_pipes(folder)
        self.manager = ocp.CheckpointManager(folder, options=options)

    def last_good(self) -> str:
        """Returns the path of the newest finished checkpoint, for messages."""
        steps = self.manager.all_steps()
        return f"{self.folder}/step_{max(steps)}" if steps else "none yet"

    def save(
        self,
        step: int,
        state: State,
        rows: dict[str, Any],
        tokens: int,
        base: dict[str, Any] | None = None,
    ) -> None:
        """Starts to save; returns once the arrays are copied.

        Args:
          step: number of updates of the state.
          state: the state; its `params` are those that train.
          rows: the data cursors of this host.
          tokens: tokens learned so far.
          base: of adapters, the `Base.reference` of the weights that they are added to.

        Raises UserError if this save or the one before it failed, or if there is no room.
        """
        # A save in the background that failed is reported before the next one is started.
        self.wait()
        self._check_room(step)
        optimizer = {"step": state.step, "state": state.opt_state}
        cursors = {"rows": gather(rows), "tokens": tokens}
        # On the devices, and before the next training step donates the arrays.
        sums = {
            "params": checksums.of_tree(state.params),
            "optimizer": checksums.of_tree(optimizer),
            "cursors": checksums.of_json(cursors),
        }
        extra = {ITEM: ocp.args.JsonSave(base)} if base else {}
        items = ocp.args.Composite(
            # Separate items, because whoever uses the model reads `params` alone: the optimizer
            # state of Adam is twice as large.
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(optimizer),
            cursors=ocp.args.JsonSave(cursors),
            stage=ocp.args.JsonSave(to_dict(self.stage)),
            checksums=ocp.args.JsonSave(sums),
            **extra,
        )
        # `force`: the training loop decides when to save, not Orbax's own interval.
        self._guarded(f"step {step}", lambda: self.manager.save(step, args=items, force=True))

    def _check_room(self, step: int) -> None:
        """Raises UserError if the disk is too full: Orbax would fail after minutes of writing."""
        if is_bucket(self.folder):
            return
        # Every host writes its share.
        needed = checkpoint_bytes(self.stage) // jax.process_count()
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            room = f"it takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
            raise UserError(
                f"no room for the checkpoint of step {step} in {self.folder}: {room};"
                f" the last good one: {self.last_good()}"
            )

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._guarded("the last step", self.manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the writes in progress. After a failed save it does nothing."""
        # Orbax's threads of a failed save would be waited for, for minutes.
        if not self.failed:
            self.manager.close()

    def _guarded(self, name: str, save: Callable[[], Any]) -> None:
        """Calls `save`. Raises UserError with the step and the last good checkpoint if it fails."""
        try:
            save()
        except Exception as error:
            self.failed = True
            exit_within()  # threads of a failed save wait for each other for minutes, or for ever
            raise UserError(
                f"could not save the checkpoint of {name}: {first_line(error)};"
                f" the last good one: {self.last_good()}"
            ) from error

    def restore(self, abstract: AnyState) -> tuple[int, AnyState, dict[str, Any]] | None:
        """Returns step, state and cursors of the newest good checkpoint; None if there is none.

        Args:
          abstract: shapes, dtypes and shardings of the state.

        Raises UserError if there are checkpoints and none of them can be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        # The newest first; damage costs the steps since the checkpoint before it, not the run.
        for step in steps:
            try:
                items = self._read(step, abstract)
            except UserError as error:
                warn_damaged(self.folder / f"step_{step}", error)
                continue
            # Damaged ones are deleted, or Orbax would refuse to save these steps again.
            for newer in steps:
                if newer > step:
                    self.manager.delete(newer)
            optimizer = items["optimizer"]
            state = abstract.replace(
                step=optimizer["step"], params=items["params"], opt_state=optimizer["state"]
            )
            return step, state, items["cursors"]
        if steps:
            raise UserError(
                f"no checkpoint under {self.folder} can be read: pass --fresh to start again"
                " (the folder is kept under another name)"
            )
        return None

    def _read(self, step: int, abstract: State) -> dict[str, Any]:
        """Reads a checkpoint. Raises UserError on all hosts for damage that one of them sees."""
        # Without Orbax: a host on which it raises does not reach its barrier, and would read an
        # older checkpoint while the others still wait there.
        checkpoint = self.folder / f"step_{step}"
        optimizer = {"step": abstract.step, "state": abstract.opt_state}
        items = {
            "params": read_item(checkpoint, "params", abstract.params),
            "optimizer": read_item(checkpoint, "optimizer", optimizer),
            "cursors": on_all_hosts(lambda: read_json(checkpoint / "cursors" / "metadata")),
        }
        # Bits may have flipped in arrays that TensorStore still reads without an error.
        saved = on_all_hosts(lambda: read_checksums(checkpoint))
        if saved:
            checksums.check(items["params"], saved["params"])
            checksums.check(items["optimizer"], saved["optimizer"])
            if checksums.of_json(items["cursors"]) != saved["cursors"]:
                raise UserError("the data cursors do not match their checksum")
        return items
