"""The checkpoint of a run whose weights the adapters of another stage are added to.

Checkpoints of adapters hold its folder, step and identity in place of its weights. Starts no JAX.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from typing import Any

from etils import epath

from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import on_all_hosts
from codellama_jax.system.files import is_bucket, read_json, user_path

ITEM = "base"  # the part of a checkpoint that describes it


@dataclass(frozen=True)
class Base:
    """A checkpoint that adapters are added to.

    Args:
      folder: the stage that was trained or imported.
      step: of its checkpoint; None takes the newest good one.
      identity: a hash of its checksums; "" before it was read.
    """

    folder: StageFolder
    step: int | None
    identity: str = ""

    def reference(self, stage: StageFolder) -> dict[str, Any]:
        """Returns the JSON that the checkpoints of `stage` hold.

        The path is relative where both stages are in one run, which may be moved.
        """
        path, run = str(self.folder), stage.path.parent.parent
        # `stage.path.parent.parent` is the run: stages are ARM/STAGE in it.
        if not is_bucket(path) and run in self.folder.path.parents:
            path = os.path.relpath(path, stage.path)
        return {"folder": path, "step": self.step, "identity": self.identity}

    def read_as(self, step: int, identity: str) -> Base:
        """Returns the base with the step that was read.

        Raises UserError if other weights are there than those that adapters were trained on.
        """
        # The adapters are corrections to exactly these weights: added to others they would give a
        # model that computes nonsense without any error.
        if self.identity and self.identity != identity:
            raise UserError(
                f"{self.folder.checkpoint(step)} holds other weights than those that the adapters"
                " were trained on: put the original run back, or train the adapters again"
            )
        return replace(self, step=step, identity=identity)


def recorded_base(checkpoint: epath.Path) -> Base:
    """Returns the base that a checkpoint of adapters names. All hosts call it.

    Raises UserError on all hosts if it is damaged for one of them: that one alone would try an
    earlier checkpoint.
    """
    return on_all_hosts(functools.partial(_recorded_base, checkpoint))


def _recorded_base(checkpoint: epath.Path) -> Base:
    path = checkpoint / ITEM / "metadata"
    values = read_json(path)
    if isinstance(values, dict):
        folder, step, identity = (values.get(key) for key in ("folder", "step", "identity"))
        # Checked by type, since the file may be damaged in any way that is still JSON.
        if isinstance(folder, str) and isinstance(step, int) and isinstance(identity, str):
            stage = checkpoint.parent.parent
            # A relative path is relative to the folder of the stage; an absolute one is kept by the
            # join.
            absolute = folder if is_bucket(folder) else os.path.normpath(stage / folder)
            return Base(StageFolder(user_path(absolute)), step, identity)
    raise UserError(f"{path} is damaged")
