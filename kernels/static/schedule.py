"""Reads the schedule that libtpu's compiler writes for a kernel: regions, and the bundles and units each one uses.

A bundle is what a TPU core issues in one cycle. Conditionals and loops are regions of consecutive bundles, so a pass over
a kernel costs the bundles of each region times the number of times that it runs.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re

import numpy as np

TABLE, LISTING = "pre-delay_hlo-static-per-bundle-utilization", "post-bundle-packing-post-ra"
UNITS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")


@dataclasses.dataclass
class Region:
    """A run of bundles [start, end). `kind` is pred_region (a conditional's body), loop_body, or root (the kernel)."""

    number: int
    parent: int | None
    kind: str
    start: int = 0
    end: int = 0
    children: list[Region] = dataclasses.field(default_factory=list)

    def walk(self):
        yield self
        for child in self.children:
            yield from child.walk()


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A kernel's regions, the use of each unit by bundle (bundles, UNITS), slots of each unit, and vector memory in bytes."""

    root: Region
    use: np.ndarray
    slots: np.ndarray
    vmem_bytes: int

    def own(self, region: Region) -> np.ndarray:
        """Returns the use (bundles, UNITS) of the region's own bundles, those in no region inside it."""
        mine = np.zeros(len(self.use), bool)
        mine[region.start : region.end] = True
        for child in region.children:
            mine[child.start : child.end] = False
        return self.use[mine]


def _regions(text: str) -> list[Region]:
    """Returns every region in the order of the listing, with the bounds that the branches give.

    The bundles of a check may run on until its branch, so a conditional's body begins where its branch ends. A loop's body
    ends with the branch that goes back to it.
    """
    regions: list[Region] = []
    by_number: dict[int, Region] = {}
    branch_end = 0
    for line in text.splitlines():
        if match := re.match(
            r"\s*\$region(\d+)(?: \(\w+\))?: #\{.*\}(?: parent=(\d+))?(?: \(\w+\))?(?: // (\w+))?",
            line,
        ):
            number, parent, kind = (
                int(match[1]),
                match[2] and int(match[2]),
                match[3] or ("root" if match[2] is None else "part"),
            )
            regions.append(Region(number, parent, kind))
            by_number[number] = regions[-1]
        elif match := re.match(r"\s*// region range: \[(\d+), (\d+)\)", line):
            region = regions[-1]
            region.start, region.end = int(match[1]), int(match[2])
            if region.kind == "pred_check_branch":
                branch_end = region.end
            elif region.kind == "pred_region":
                region.start = max(region.start, branch_end)
        elif match := re.search(r"sbr\.rel .* target bundleno = \d+ \(\w+\), region = (\d+)", line):
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
    ends = re.findall(r"space=vmem, size = (0x[0-9a-f]+|\d+), offset = (0x[0-9a-f]+|\d+)", text)
    return max((int(size, 0) + int(offset, 0) for size, offset in ends), default=0)


def flags(dump: str) -> str:
    """Returns the LIBTPU_INIT_ARGS that make libtpu write what `read` needs into `dump`; all that it can write would be gigabytes."""
    return f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={TABLE}|{LISTING}"


def read(dump: str, kernel: str) -> Schedule | None:
    """Returns the schedule of the newest kernel in `dump` whose name holds `kernel`, or None."""
    tables = glob.glob(f"{dump}/*{kernel}*-{TABLE}.txt")
    if not tables:
        return None
    table = max(tables, key=os.path.getmtime)
    stem = re.sub(rf"-\d+-{TABLE}.*", "", table)
    with open(table) as file:
        lines = file.read().splitlines()
    with open(glob.glob(f"{glob.escape(stem)}-*-{LISTING}.txt")[0]) as file:
        listing = file.read()
    use = np.array(
        [[int(n) for n in line.split()] for line in lines[4:] if re.match(r"\d+ ", line)]
    )
    root = _tree(_regions(listing))
    if root.start or len(use) - root.end not in (
        0,
        1,
    ):  # a branch to the very end adds one bundle to the table
        raise ValueError(
            f"the listing of {kernel} has {root.end} bundles, its table {len(use)}: this libtpu writes another format"
        )
    return Schedule(root, use, np.array([int(n) for n in lines[2].split()]), _vmem_bytes(listing))
