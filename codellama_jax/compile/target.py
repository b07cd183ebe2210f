"""TPU pods to compile for: checks a target's name and returns its devices, without a TPU."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from typing import Any

from codellama_jax.errors import UserError
from kernels.static.chips import CHIPS, ENVIRONMENT, Chip

SIDES = (2, 4, 8, 16)  # chips along one axis of a topology that has two axes


def prepare_environment(target: str) -> None:
    """Sets the environment variables that libtpu reads. Call it before JAX starts.

    Raises:
      UserError: for a target that does not exist, or where libtpu is not installed.
    """
    parse(target)
    if importlib.util.find_spec("libtpu") is None:
        install = "pip install -e '.[tpu]' in the project's folder"
        raise UserError(f"the TPU compiler is not installed: {install}")
    os.environ.update(ENVIRONMENT)


def parse(target: str) -> Chip:
    """Returns the chip of a target such as v5p:4x8x8.

    Topologies are checked here because the compiler aborts the process for some wrong ones.

    Raises:
      UserError: for another form, an unknown chip, or a topology that the chip does not have.
    """
    name, _, topology = target.partition(":")
    if name not in CHIPS:
        similar = difflib.get_close_matches(name, CHIPS, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(CHIPS)}"
        raise UserError(f"no chip {name[:60]!r}: {hint}")
    chip = CHIPS[name]
    is_well_formed = re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", topology)
    if not is_well_formed or not _exists(chip, topology):
        if chip.axes == 2:
            allowed = (
                f"two axes of {', '.join(map(str, SIDES))} chips, such as {name}:16x16,"
                f" or one chip, {name}:1x1"
            )
        else:
            sides = "each 2 or a multiple of 4 chips (the last one also 1)"
            allowed = (
                f"three axes, {sides}, at most {chip.largest_pod} in all, such as {name}:4x4x4,"
                f" or one chip, {name}:1x1x1"
            )
        raise UserError(f"no topology {target[:60]}: a {name} pod has {allowed}")
    return chip


def _exists(chip: Chip, topology: str) -> bool:
    sides = [int(side) for side in topology.split("x")]
    if _is_single(chip, topology):
        return True
    if len(sides) != chip.axes or math.prod(sides) > chip.largest_pod:
        return False
    if chip.axes == 2:
        # The topologies of v5e and v6e are rectangles whose sides are powers of two.
        return all(side in SIDES for side in sides)
    # A host has 2 x 2 x 1 chips, and larger pods are built from cubes of 4 x 4 x 4 chips.
    *first_two, last = sides
    are_divided = all(side == 2 or side % 4 == 0 for side in first_two)
    return are_divided and (last <= 2 or last % 4 == 0)


def _is_single(chip: Chip, topology: str) -> bool:
    """Returns whether a topology is one chip, which a process can have for itself on any host."""
    return topology == "x".join(["1"] * chip.axes)


def devices(target: str, slices: int) -> list:
    """Returns the devices of `slices` pods of the topology `target`.

    Raises:
      UserError: for a topology that does not exist.
    """
    # Importing JAX here lets `prepare_environment` run first.
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    chip = parse(target)
    options: dict[str, Any] = dict(chip.topology_options)
    if slices > 1:
        options["num_slices"] = slices
    if _is_single(chip, target.partition(":")[2]):
        options["chips_per_host_bounds"] = (1, 1, 1)  # libtpu assumes hosts of 2 x 2 x 1 chips
    try:
        pod = topologies.get_topology_desc(platform="tpu", topology_name=target, **options)
        return list(pod.devices)
    except JaxRuntimeError as error:
        # Without the status code in front of the message.
        problem = str(error).splitlines()[0].split(": ", 1)[-1]
        raise UserError(f"no topology {target}: {problem}") from None
