"""Reads the schedule that libtpu's compiler writes for a kernel: its regions, bundles and units.

A TPU core is a VLIW machine: it issues one bundle of instructions per cycle, and the compiler fixes
the order of the bundles. Conditionals and loops are regions of consecutive bundles. One run of a
kernel therefore takes the bundles of each region times the number of times that the region runs,
plus the memory stalls of real hardware, which no schedule shows.

The format of the dumps is not documented and may change. `read` compares the two dumps with each
other and raises ValueError if they do not agree.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Iterator

import numpy as np

# Labels of the compiler passes whose dumps are read. The table has one line per bundle with the
# slots that it uses of each unit; the listing has the bundles' instructions, nested in regions.
TABLE, LISTING = "pre-delay_hlo-static-per-bundle-utilization", "post-bundle-packing-post-ra"
# A line of the listing: "$region3 (Core): #{kernel} parent=1 (Other) // pred_region".
_REGION = re.compile(
    r"\s*\$region(?P<number>\d+)(?: \(\w+\))?: #\{.*\}(?: parent=(?P<parent>\d+))?"
    r"(?: \(\w+\))?(?: // (?P<kind>\w+))?"
)
# The bundles of the region above: "// region range: [5, 30)".
_RANGE = re.compile(r"\s*// region range: \[(\d+), (\d+)\)")
# A branch to another region: "sbr.rel (%p1) target bundleno = 20 (0x14), region = 4".
_BRANCH = re.compile(r"sbr\.rel .* target bundleno = \d+ \(\w+\), region = (\d+)")
# Columns of the table, in its order: matrix unit (MXU), cross-lane unit (XLU), vector arithmetic
# (VALU), results popped from the matrix unit (VPOP), transcendental functions (EUP), vector loads,
# register fills, vector stores, register spills, and scalar arithmetic (SALU).
UNITS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")


NESTED = ("pred_region", "loop_body")  # kinds of region that may run another number of times


@dataclasses.dataclass
class Region:
    """Consecutive bundles [start, end) of a kernel.

    Args:
      number: the listing's number of the region.
      parent: number of the region that contains it; None for the root.
      kind: `pred_region` (body of a conditional), `loop_body`, or `root` (the kernel).
      start, end: first bundle, and the bundle after the last one.
      children: conditionals and loops directly inside it.
    """

    number: int
    parent: int | None
    kind: str
    start: int = 0
    end: int = 0
    children: list[Region] = dataclasses.field(default_factory=list)

    def walk(self) -> Iterator[Region]:
        """Yields the region and all regions inside it, outer regions first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A kernel's schedule.

    Args:
      root: the region of the kernel.
      use: (bundles, units) int, number of slots of each unit that a bundle uses.
      slots: (units,) int, number of slots that each unit has per cycle.
      vmem_bytes: VMEM that the kernel allocates, in bytes.
    """

    root: Region
    use: np.ndarray
    slots: np.ndarray
    vmem_bytes: int

    def exclusive_use(self, region: Region) -> np.ndarray:
        """Returns (bundles, units) of the bundles of `region` that are in no inner region."""
        is_exclusive = np.zeros(len(self.use), bool)
        is_exclusive[region.start : region.end] = True
        for child in region.children:
            is_exclusive[child.start : child.end] = False
        return self.use[is_exclusive]


def _regions(text: str) -> list[Region]:
    """Returns every region of a listing in its order, with corrected bounds.

    The listing's ranges overlap, because the compiler moves bundles across regions. Two corrections
    give the bundles that run together with each region. The body of a conditional starts after the
    branch that jumps over it. The body of a loop ends with the branch that returns to its start.
    """
    regions: list[Region] = []
    by_number: dict[int, Region] = {}
    branch_end = 0  # bundle after the branch of the latest conditional
    for line in text.splitlines():
        if match := _REGION.match(line):
            number = int(match["number"])
            parent = int(match["parent"]) if match["parent"] else None
            kind = match["kind"] or ("root" if parent is None else "part")
            regions.append(Region(number, parent, kind))
            by_number[number] = regions[-1]
        elif match := _RANGE.match(line):
            region = regions[-1]
            region.start, region.end = int(match[1]), int(match[2])
            if region.kind == "pred_check_branch":
                branch_end = region.end
            elif region.kind == "pred_region":
                region.start = max(region.start, branch_end)
        elif match := _BRANCH.search(line):
            target = by_number.get(int(match[1]))
            if target is not None and target.kind == "loop_body":
                # A branch back to a loop's body: its bundles run once per iteration, too.
                target.end = max(target.end, regions[-1].end)
    return regions


def _tree(regions: list[Region]) -> Region:
    """Returns the root with conditionals and loops nested in it.

    The other kinds of region only mark parts of these and are left out.
    """
    by_number = {region.number: region for region in regions}
    root = regions[0]
    for region in regions[1:]:
        if region.kind in NESTED:
            _nearest_outer(region, by_number).children.append(region)
    root.kind = "root"
    return root


def _nearest_outer(region: Region, by_number: dict[int, Region]) -> Region:
    """Returns the innermost conditional, loop or root around a region."""
    # Regions of other kinds between two nested ones are skipped, since they run as often as their
    # parent.
    while region.parent is not None:
        region = by_number[region.parent]
        if region.kind in NESTED:
            break
    return region


def _vmem_bytes(text: str) -> int:
    """Returns the end of the last VMEM allocation in a listing, in bytes."""
    number = r"(0x[0-9a-f]+|\d+)"
    allocations = re.findall(rf"space=vmem, size = {number}, offset = {number}", text)
    ends = [int(size, 0) + int(offset, 0) for size, offset in allocations]
    return max(ends, default=0)


def flags(dump: str) -> str:
    """Returns the LIBTPU_INIT_ARGS that make libtpu write into `dump` the files that `read` needs.

    The regular expression limits them to two passes: the dumps of all passes take gigabytes.
    """
    passes = f"--xla_jf_dump_llo_pass_label_regex={TABLE}|{LISTING}"
    return f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true {passes}"


def read(dump: str, kernel: str) -> Schedule:
    """Returns the schedule of the newest kernel in the folder `dump` whose name contains `kernel`.

    Raises:
      ValueError: if `dump` holds no such kernel, or if its two files do not agree.
    """
    tables = glob.glob(f"{dump}/*{kernel}*-{TABLE}.txt")
    if not tables:
        raise ValueError(f"libtpu wrote no schedule of a kernel named {kernel}")
    # Several compilations may dump into the folder, and the kernel of interest is the last one.
    table = max(tables, key=os.path.getmtime)
    stem = re.sub(rf"-\d+-{TABLE}.*", "", table)
    with open(table) as file:
        lines = file.read().splitlines()
    with open(glob.glob(f"{glob.escape(stem)}-*-{LISTING}.txt")[0]) as file:
        listing = file.read()
    # The first four lines name the units and give their slots per cycle; then follow the bundles.
    rows = [line.split() for line in lines[4:] if re.match(r"\d+ ", line)]
    use = np.array(rows, dtype=int)
    root = _tree(_regions(listing))
    # The kernel starts with the first bundle and contains all of them. A branch to its very end
    # adds one bundle to the table that the listing does not have.
    if root.start or len(use) - root.end not in (0, 1):
        raise ValueError(
            f"the listing of {kernel} has {root.end} bundles and its table {len(use)}:"
            " this libtpu writes another format"
        )
    slots = np.array(lines[2].split(), dtype=int)
    return Schedule(root, use, slots, _vmem_bytes(listing))
