"""What one pass of a kernel costs: the bundles of each region of its schedule times how often that region runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kernels.static.schedule import UNITS, Region, Schedule

SHOWN = ("MXU", "XLU", "VALU", "EUP")


@dataclasses.dataclass(frozen=True)
class Pass:
    """A pass: cycles, cycles of one block of each kind, shares of the units' slots, register fills and spills, vector memory."""

    kernel: str
    cycles: int
    blocks: dict[str, int]
    units: dict[str, float]
    fills: int
    spills: int
    vmem_mib: float


def total(
    kernel: str, schedule: Schedule, runs: list[tuple[Region, int]], blocks: dict[str, Region]
) -> Pass:
    """Adds up `runs`, how often each region's own bundles run; a region that is not listed does not run."""
    uses = [(schedule.own(region), times) for region, times in runs]
    cycles = sum(len(use) * times for use, times in uses)
    slots = dict(zip(UNITS, sum(use.sum(0) * times for use, times in uses)))
    units = {
        unit: float(slots[unit] / (cycles * schedule.slots[UNITS.index(unit)])) for unit in SHOWN
    }
    sizes = {name: len(schedule.own(region)) for name, region in blocks.items()}
    return Pass(
        kernel,
        cycles,
        sizes,
        units,
        int(slots["FILL"]),
        int(slots["SPILL"]),
        schedule.vmem_bytes / 2**20,
    )


def grid_step(schedule: Schedule) -> tuple[Region, Region]:
    """Returns the grid's loop and its body: what runs at each step, without the two steps that only start or end transfers."""
    loop = next(region for region in schedule.root.walk() if region.kind == "loop_body")
    return loop, max(loop.children, key=lambda region: region.end - region.start)


def inside(region: Region, times: int, trips: int = 1) -> Iterator[tuple[Region, int]]:
    """Yields the region and all in it with how often they run, when it is entered `times` and each loop in it goes `trips` rounds."""
    times *= trips if region.kind == "loop_body" else 1
    yield region, times
    for child in region.children:
        yield from inside(child, times, trips)


def products(schedule: Schedule, region: Region) -> int:
    """Returns how many slots of the matrix units the region uses, with all that is in it."""
    return int(schedule.use[region.start : region.end, UNITS.index("MXU")].sum())
