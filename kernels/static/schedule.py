"""Reads the schedule that libtpu's compiler writes for a kernel: its regions, bundles and units.

A TPU core issues one bundle per cycle. Conditionals and loops are regions of consecutive bundles,
so a pass over a kernel costs the bundles of each region times how often the region runs.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re

import numpy as np

# The compiler passes whose dumps are read: the units that each bundle uses, and the regions.
TABLE, LISTING = "pre-delay_hlo-static-per-bundle-utilization", "post-bundle-packing-post-ra"
# A line of the listing: "$region3 (Core): #{kernel} parent=1 (Other) // pred_region".
_REGION = re.compile(
    r"\s*\$region(?P<number>\d+)(?: \(\w+\))?: #\{.*\}(?: parent=(?P<parent>\d+))?"
    r"(?: \(\w+\))?(?: // (?P<kind>\w+))?"
)
_RANGE = re.compile(r"\s*// region range: \[(\d+), (\d+)\)")
_BRANCH = re.compile(r"sbr\.rel .* target bundleno = \d+ \(\w+\), region = (\d+)")
UNITS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")


@dataclasses.dataclass
class Region:
    """A run of bundles [start, end).

    `kind` is pred_region (a conditional's body), loop_body, or root (the kernel).
    """

    number: int
    parent: int | None
    kind: str
    start: int = 0
    end: int = 0
    children: list[Region] = dataclasses.field(default_factory=list)

    def walk(self):
        """Yields the region and all regions inside it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A kernel's schedule.

    Args:
      root: the region of the kernel.
      use: (bundles, UNITS) slots of each unit that a bundle uses.
      slots: (UNITS,) slots that each unit has per cycle.
      vmem_bytes: VMEM of the kernel.
    """

    root: Region
    use: np.ndarray
    slots: np.ndarray
    vmem_bytes: int

    def own(self, region: Region) -> np.ndarray:
        """Returns the use (bundles, UNITS) of the bundles that are in no region inside this one."""
        mine = np.zeros(len(self.use), bool)
        mine[region.start : region.end] = True
        for child in region.children:
            mine[child.start : child.end] = False
        return self.use[mine]


def _regions(text: str) -> list[Region]:
    """Returns every region in the order of the listing, with the bounds that the branches give.

    The bundles of a check may extend to its branch, so a conditional's body starts where its branch
    ends. A loop's body ends with the branch that returns to it.
    """
    regions: list[Region] = []
    by_number: dict[int, Region] = {}
    branch_end = 0
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
                target.end = max(target.end, regions[-1].end)
    return regions


def _tree(regions: list[Region]) -> Region:
    """Nests conditionals and loops; the other regions only mark parts of them."""
    by_number = {region.number: region for region in regions}
    root = regions[0]
    for region in regions[1:]:
        if region.kind in ("pred_region", "loop_body"):
            parent = by_number[region.parent]
            while parent.kind not in ("pred_region", "loop_body") and parent is not root:
                parent = by_number[parent.parent]
            parent.children.append(region)
    root.kind = "root"
    return root


def _vmem_bytes(text: str) -> int:
    number = r"(0x[0-9a-f]+|\d+)"
    allocations = re.findall(rf"space=vmem, size = {number}, offset = {number}", text)
    ends = [int(size, 0) + int(offset, 0) for size, offset in allocations]
    return max(ends, default=0)


def flags(dump: str) -> str:
    """Returns the LIBTPU_INIT_ARGS that make libtpu write the dumps that `read` needs.

    The regular expression limits them: all dumps together take gigabytes.
    """
    passes = f"--xla_jf_dump_llo_pass_label_regex={TABLE}|{LISTING}"
    return f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true {passes}"


def read(dump: str, kernel: str) -> Schedule | None:
    """Returns the schedule of the newest kernel in `dump` whose name contains `kernel`, or None.

    Raises ValueError if the two dumps do not agree.
    """
    tables = glob.glob(f"{dump}/*{kernel}*-{TABLE}.txt")
    if not tables:
        return None
    table = max(tables, key=os.path.getmtime)
    stem = re.sub(rf"-\d+-{TABLE}.*", "", table)
    with open(table) as file:
        lines = file.read().splitlines()
    with open(glob.glob(f"{glob.escape(stem)}-*-{LISTING}.txt")[0]) as file:
        listing = file.read()
    rows = [line.split() for line in lines[4:] if re.match(r"\d+ ", line)]
    use = np.array(rows, dtype=int)
    root = _tree(_regions(listing))
    # A branch to the very end adds one bundle to the table.
    if root.start or len(use) - root.end not in (0, 1):
        raise ValueError(
            f"the listing of {kernel} has {root.end} bundles and its table {len(use)}:"
            " this libtpu writes another format"
        )
    slots = np.array(lines[2].split(), dtype=int)
    return Schedule(root, use, slots, _vmem_bytes(listing))
