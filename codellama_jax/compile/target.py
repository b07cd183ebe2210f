"""TPU pods to compile for that are not at hand: chips, topologies, and the compiler's environment."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from dataclasses import dataclass

from codellama_jax.accounting import PEAK_FLOPS
from codellama_jax.errors import UserError
from kernels.chips import ENVIRONMENT


@dataclass(frozen=True)
class Chip:
    """What JAX counts as a device: both cores of a v4 or v5p, one of the two of a TPU7x."""

    kind: str  # its name in accounting.PEAK_FLOPS
    units: int  # matrix units
    width: int  # their side
    cores: int  # that share a device's work
    hbm_gib: float  # what the runtime leaves to a program, as the compiler says when it is not enough
    hbm_speed: float  # bytes a second, as published
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
    "v4": Chip("TPU v4", 8, 128, 2, 30.75, 1228e9, (("chip_config_name", "megacore"),)),
    "v5e": Chip("TPU v5 lite", 4, 128, 1, 15.75, 819e9),
    "v5p": Chip("TPU v5p", 8, 128, 2, 95.74, 2765e9),
    "v6e": Chip("TPU v6 lite", 4, 256, 1, 31.25, 1638e9),
    "tpu7x": Chip("TPU7x", 4, 256, 1, 94.75, 3690e9),
}


def prepare_environment() -> None:
    """Sets what libtpu needs, before JAX starts. Raises UserError where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        install = "pip install -e '.[tpu]' in the project's folder"
        raise UserError(f"the TPU compiler is not installed: {install}")
    os.environ.update(ENVIRONMENT)


def parse(target: str) -> Chip:
    """Returns the chip of a target such as v5p:4x8x8. Raises UserError for another form or an unknown chip."""
    name, _, shape = target.partition(":")
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, n=1)
        raise UserError(f"no chip {name!r}: {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(CHIPS)}")
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        example = f"{name}:16x16" if name in ("v5e", "v6e") else f"{name}:4x4x4"
        raise UserError(f"no topology {target!r}: write chips along each axis, such as {example}")
    return CHIPS[name]


def devices(target: str, slices: int) -> list:
    """Returns the devices of a pod. Raises UserError for a topology that does not exist."""
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    options = dict(parse(target).options) | ({"num_slices": slices} if slices > 1 else {})
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=target, **options).devices)
    except JaxRuntimeError as error:
        raise UserError(f"no topology {target}: {str(error).splitlines()[0].split(': ', 1)[-1]}") from None
