"""Cycles of one pass of a kernel: the bundles of each region times how often the region runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from kernels.static.schedule import UNITS, Region, Schedule

SHOWN = ("MXU", "XLU", "VALU", "EUP")  # units whose load is printed


@dataclasses.dataclass(frozen=True)
class Pass:
    """Figures of one pass of a kernel over its inputs, all of them compiler estimates.

    Args:
      kernel: a label.
      cycles: cycles of the full pass.
      blocks: cycles of one block of each kind, by the kind's name.
      units: fraction of each unit's issue slots that the pass uses, by the unit's name.
      fills, spills: registers read back from VMEM, and registers written to it.
      vmem_mib: VMEM in MiB.
      reads: cycles in which a core reads the pass's inputs with its share of the bandwidth; 0 for
        a pass that is not limited by it.
      with_reads: cycles of the pass if each copy takes that long and runs beside the computation.
      ragged: `reads` over `with_reads` for inputs of all lengths up to that of the pass.
    """

    kernel: str
    cycles: int
    blocks: dict[str, int]
    units: dict[str, float]
    fills: int
    spills: int
    vmem_mib: float
    reads: int = 0
    with_reads: int = 0
    ragged: float = 0.0


def total(
    kernel: str,
    schedule: Schedule,
    runs: list[tuple[Region, int]],
    blocks: Mapping[str, Region],
) -> Pass:
    """Returns the figures of a pass from the number of times that each region runs.

    Args:
      kernel: label of the pass.
      schedule: the kernel's schedule.
      runs: (region, number of times it runs). A region counts with the bundles that are in none of
        its inner regions, and a region that is missing here counts nothing.
      blocks: the regions whose own cycles are reported, by name.
    """
    # Exclusive, because an inner region has its own number of runs in the list.
    uses = [(schedule.exclusive_use(region), times) for region, times in runs]
    cycles = sum(len(use) * times for use, times in uses)
    slots = dict(zip(UNITS, sum(use.sum(0) * times for use, times in uses)))
    units = {}
    for unit in SHOWN:
        # A unit may have several slots per bundle: its load is relative to all of them.
        available = cycles * schedule.slots[UNITS.index(unit)]
        units[unit] = float(slots[unit] / available)
    block_cycles = {name: len(schedule.exclusive_use(region)) for name, region in blocks.items()}
    # Both are memory traffic that the source did not request: the block needs too many registers.
    fills, spills = int(slots["FILL"]), int(slots["SPILL"])
    vmem_mib = schedule.vmem_bytes / 2**20
    return Pass(kernel, cycles, block_cycles, units, fills, spills, vmem_mib)


def grid_step(schedule: Schedule) -> tuple[Region, Region]:
    """Returns the loop over the kernel's grid, and the region inside it that computes a step.

    The computing region is the longest child of the loop. The two shorter ones start the transfers
    of the next step's blocks and wait for those of the last one.
    """
    # The outermost loop comes first in the walk, and the grid is the outermost loop of a kernel.
    loop = next(region for region in schedule.root.walk() if region.kind == "loop_body")
    return loop, max(loop.children, key=lambda region: region.end - region.start)


def inside(region: Region, times: int, trips: int = 1) -> Iterator[tuple[Region, int]]:
    """Yields a region and all regions inside it, each with the number of times that it runs.

    Args:
      region: the outer region.
      times: how often it is entered.
      trips: iterations of every loop inside it, and of itself if it is a loop.
    """
    # A conditional is taken to run whenever it is reached.
    times *= trips if region.kind == "loop_body" else 1
    yield region, times
    for child in region.children:
        yield from inside(child, times, trips)


def matrix_slots(schedule: Schedule, region: Region) -> int:
    """Returns how many matrix-unit slots the bundles of a region and its inner regions use."""
    return int(schedule.use[region.start : region.end, UNITS.index("MXU")].sum())
