"""Cycles of one pass of a kernel: the bundles of each region times how often the region runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kernels.static.schedule import UNITS, Region, Schedule

SHOWN = ("MXU", "XLU", "VALU", "EUP")  # units whose load is printed


@dataclasses.dataclass(frozen=True)
class Pass:
    """Figures of a pass, all compiler estimates.

    Args:
      kernel: a label.
      cycles: of the full pass.
      blocks: cycles of one block of each kind.
      units: share of each unit's issue slots that is used.
      fills, spills: register fills and spills.
      vmem_mib: VMEM in MiB.
    """

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
    """Returns the pass in which the regions run as often as `runs` lists; others do not run.

    Only a region's own bundles count, not those of the regions inside it.
    """
    uses = [(schedule.own(region), times) for region, times in runs]
    cycles = sum(len(use) * times for use, times in uses)
    slots = dict(zip(UNITS, sum(use.sum(0) * times for use, times in uses)))
    units = {}
    for unit in SHOWN:
        available = cycles * schedule.slots[UNITS.index(unit)]
        units[unit] = float(slots[unit] / available)
    block_cycles = {name: len(schedule.own(region)) for name, region in blocks.items()}
    fills, spills = int(slots["FILL"]), int(slots["SPILL"])
    vmem_mib = schedule.vmem_bytes / 2**20
    return Pass(kernel, cycles, block_cycles, units, fills, spills, vmem_mib)


def grid_step(schedule: Schedule) -> tuple[Region, Region]:
    """Returns the grid's loop and its body.

    The body is the longest child: two shorter ones only start or end transfers.
    """
    loop = next(region for region in schedule.root.walk() if region.kind == "loop_body")
    return loop, max(loop.children, key=lambda region: region.end - region.start)


def inside(region: Region, times: int, trips: int = 1) -> Iterator[tuple[Region, int]]:
    """Yields a region and everything inside it with how often each runs.

    The region is entered `times` times and each loop inside it makes `trips` rounds.
    """
    times *= trips if region.kind == "loop_body" else 1
    yield region, times
    for child in region.children:
        yield from inside(child, times, trips)


def matrix_slots(schedule: Schedule, region: Region) -> int:
    """Returns how many matrix-unit slots a region uses, with everything inside it."""
    return int(schedule.use[region.start : region.end, UNITS.index("MXU")].sum())
