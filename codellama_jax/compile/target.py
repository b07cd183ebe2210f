"""TPU pods to compile for without having one: chips, topologies, the compiler's environment."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.models.accounting import PEAK_FLOPS
from kernels.static.chips import ENVIRONMENT


@dataclass(frozen=True)
class Chip:
    """What JAX counts as a device: both cores of a v4 or v5p, one of the two of a TPU7x."""

    kind: str  # its name in accounting.PEAK_FLOPS
    units: int  # matrix units
    width: int  # their side
    cores: int  # that share a device's work
    hbm_gib: float  # what the runtime leaves to a program, as the compiler reports it
    hbm_speed: float  # bytes per second, as published
    axes: int  # of its topology
    pod: int  # chips of the largest topology
    options: tuple[tuple[str, str], ...] = ()  # of the topology

    @property
    def multiply_adds(self) -> int:
        """Of one cycle."""
        return self.units * self.width**2

    @property
    def clock(self) -> float:
        """Cycles a second: those at which the multiply-adds make the peak FLOP/s."""
        return PEAK_FLOPS[self.kind] / (2 * self.multiply_adds)


CHIPS = {
    "v4": Chip("TPU v4", 8, 128, 2, 30.75, 1228e9, 3, 4096, (("chip_config_name", "megacore"),)),
    "v5e": Chip("TPU v5 lite", 4, 128, 1, 15.75, 819e9, 2, 256),
    "v5p": Chip("TPU v5p", 8, 128, 2, 95.74, 2765e9, 3, 8960),
    "v6e": Chip("TPU v6 lite", 4, 256, 1, 31.25, 1638e9, 2, 256),
    "tpu7x": Chip("TPU7x", 4, 256, 1, 94.75, 3690e9, 3, 9216),
}
SIDES = (2, 4, 8, 16)  # of a topology with two axes


def prepare_environment(target: str) -> None:
    """Sets what libtpu needs, before JAX starts.

    Raises UserError for a target that does not exist, and where libtpu is not installed.
    """
    parse(target)
    if importlib.util.find_spec("libtpu") is None:
        install = "pip install -e '.[tpu]' in the project's folder"
        raise UserError(f"the TPU compiler is not installed: {install}")
    os.environ.update(ENVIRONMENT)


def parse(target: str) -> Chip:
    """Returns the chip of a target such as v5p:4x8x8.

    Raises UserError for another form, an unknown chip, and a topology that the chip does not have:
    the compiler aborts on some of them.
    """
    name, _, shape = target.partition(":")
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CHIPS)}"
        raise UserError(f"no chip {name[:60]!r}: {hint}")
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape) or not _exists(chip, shape):
        if chip.axes == 2:
            allowed = f"two axes of {', '.join(map(str, SIDES))} chips, such as {name}:16x16"
        else:
            sides = "each 2 or a multiple of 4 chips (the last one also 1)"
            allowed = f"three axes, {sides}, at most {chip.pod} in all, such as {name}:4x4x4"
        raise UserError(f"no topology {target[:60]}: a {name} pod has {allowed}")
    return chip


def _exists(chip: Chip, shape: str) -> bool:
    sides = [int(side) for side in shape.split("x")]
    if len(sides) != chip.axes or math.prod(sides) > chip.pod:
        return False
    if chip.axes == 2:
        return all(side in SIDES for side in sides)
    *hosts, last = sides  # a host has 2 x 2 x 1 chips
    return all(side == 2 or side % 4 == 0 for side in hosts) and (last <= 2 or last % 4 == 0)


def devices(target: str, slices: int) -> list:
    """Returns the devices of a pod. Raises UserError for a topology that does not exist."""
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    options: dict[str, Any] = dict(parse(target).options)
    if slices > 1:
        options["num_slices"] = slices
    try:
        pod = topologies.get_topology_desc(platform="tpu", topology_name=target, **options)
        return list(pod.devices)
    except JaxRuntimeError as error:
        problem = str(error).splitlines()[0].split(": ", 1)[-1]
        raise UserError(f"no topology {target}: {problem}") from None
