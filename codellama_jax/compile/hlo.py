"""Reads the scheduled HLO that the TPU compiler ends with: what runs, how often, how long by its estimate, and what it holds.

Loops are JAX scans: they count from zero to the constant that their condition compares with, so an operation costs its own
estimate times the trip counts of the loops around it.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
NO_BUFFER = (
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "constant",
    "copy-done",
    "optimization-barrier",
    "conditional",
)

_OPERATION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Operation:
    name: str
    type: str  # of its result, layout included
    kind: str  # fusion, while, all-gather, ...
    rest: str  # operands and attributes


@dataclass(frozen=True)
class Collective:
    """All collectives of a kind in one step: how many run, and the bytes of their larger side on one device."""

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Kernel:
    """A Pallas kernel: its name, the shape of its first result, (dtype, shape) of its operands, and how often it runs in one step."""

    name: str
    result: tuple[int, ...]
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    times: int

    @property
    def bytes(self) -> int:
        """Of its operands."""
        return sum(nbytes(*operand) for operand in self.operands)


@dataclass(frozen=True)
class Buffer:
    bytes: int
    type: str
    source: str  # file:line, or the operation where the compiler made it up


def arrays(type_text: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Returns (dtype, shape, layout) of the arrays in a type, tuples taken apart."""
    found = _ARRAY.findall(re.sub(r"/\*.*?\*/", "", type_text))
    return [
        (dtype, tuple(int(n) for n in shape.split(",") if n), layout)
        for dtype, shape, layout in found
    ]


def nbytes(dtype: str, shape: tuple[int, ...], layout: str = "") -> int:
    """Returns the bytes of an array, padding of its tiles left out."""
    return BYTES.get(dtype, 4) * math.prod(shape)


class Program:
    """A parsed HLO module."""

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, list[Operation]] = {}
        for line in text.splitlines():
            if head := re.match(r"^(ENTRY )?%(\S+) \(.*\{$", line):
                here = self.computations[head[2]] = []
                self.entry = head[2] if head[1] else getattr(self, "entry", head[2])
            elif operation := _OPERATION.match(line):
                here.append(Operation(*operation.groups()))

    def trip_count(self, condition: str) -> int:
        """Returns the constant up to which a loop counts. Raises ValueError for a loop of another form."""
        operations = {o.name: o for o in self.computations[condition]}
        for operation in operations.values():
            compares = operation.kind == "compare" and "direction=LT" in operation.rest
            if compares or operation.kind == "fusion":  # of the comparison
                for name in re.findall(r"%([^\s,)]+)", operation.rest.split(")")[0]):
                    if name in operations and operations[name].kind == "constant":
                        return int(operations[name].rest.split(")")[0])
        raise ValueError(f"the loop condition {condition} does not compare with a constant")

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs in one step; those inside a fusion as often as the fusion."""
        times: dict[str, int] = {}

        def enter(name: str, n: int) -> None:
            times[name] = times.get(name, 0) + n
            for operation in self.computations[name]:
                if operation.kind == "while":
                    condition, body = (
                        re.search(rf"{part}=%([^\s,}}]+)", operation.rest)[1]
                        for part in ("condition", "body")
                    )
                    enter(body, n * self.trip_count(condition))
                elif operation.kind in ("fusion", "call", "async-start", "conditional"):
                    for called in re.findall(
                        r"(?:calls|to_apply|(?:true|false)_computation)=%([^\s,}]+)", operation.rest
                    ):
                        enter(called, n)

        enter(self.entry, 1)
        return times

    def operations(self):
        """Yields (operation, times it runs) over the whole step, the insides of fusions included."""
        for name, n in self.times.items():
            for operation in self.computations[name]:
                yield operation, n

    def cycles(self) -> int:
        """Returns the estimated cycles of a step: those of fusions and other operations, kernels and exchanges left out."""
        return sum(
            int(found[1]) * n
            for o, n in self.operations()
            if (found := re.search(r'estimated_cycles":"(\d+)"', o.rest))
        )

    def kernels(self) -> list[Kernel]:
        """Returns the Pallas kernels that a step runs."""
        found = []
        for o, n in self.operations():
            if o.kind == "custom-call" and 'custom_call_target="tpu_custom_call"' in o.rest:
                given = re.search(r"operand_layout_constraints=\{(.*?\})\}, ", o.rest)
                operands = tuple(
                    (dtype, shape) for dtype, shape, _ in arrays(given[1] if given else "")
                )
                found.append(
                    Kernel(
                        re.sub(r"(\.\d+|\.clone)+$", "", o.name), arrays(o.type)[0][1], operands, n
                    )
                )
        return found

    def collectives(self) -> list[Collective]:
        """Returns the exchanges of a step by kind; one that the compiler cut into steps that overlap with work counts once."""
        totals: dict[str, tuple[int, int]] = {}
        seen = set()
        for name, n in self.times.items():
            for o in self.computations[name]:
                kind = o.kind.removesuffix("-start")
                channel = re.search(r"channel_id=(\d+)", o.rest)
                key = channel[1] if channel else o.name
                if kind not in COLLECTIVES or key in seen:
                    continue
                seen.add(key)
                kind = (
                    "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
                )  # a fusion that keeps a part of the sum
                sides = [nbytes(*array) for array in arrays(o.type)]
                count, total = totals.get(kind, (0, 0))
                totals[kind] = (
                    count + n,
                    total + n * (max(sides) if o.kind.endswith("-start") else sum(sides)),
                )
        return [Collective(kind, *total) for kind, total in sorted(totals.items())]

    def largest(self, count: int) -> list[Buffer]:
        """Returns the largest results in HBM, one for each type and source line."""
        found: dict[tuple[str, str], Buffer] = {}
        for name in self.times:
            if any(
                word in name
                for word in ("fused_computation", "bitcast_fusion", "all-reduce-scatter")
            ):
                continue
            for o in self.computations[name]:
                if (
                    o.kind in NO_BUFFER
                    or "dynamic-update-slice" in o.name
                    or '"AllocateBuffer"' in o.rest
                ):
                    continue
                for dtype, shape, layout in arrays(o.type):
                    if "S(" not in layout:
                        shown, source = f"{dtype}[{','.join(map(str, shape))}]", self.source(o)
                        found[shown, source] = Buffer(nbytes(dtype, shape), shown, source)
        return sorted(found.values(), key=lambda b: -b.bytes)[:count]

    def source(self, operation: Operation) -> str:
        """Returns file:line of the innermost line of this project that made the operation, else what JAX or the compiler calls it."""
        frame = re.search(r"stack_frame_id=(\d+)", operation.rest)
        at = int(frame[1]) if frame else 0
        while at in self._frames:
            location, parent = self._frames[at]
            file, line = self._locations[location]
            # The last of the two names: the clone's own folder may be called codellama_jax, too.
            if ours := re.match(r".*/((?:codellama_jax|kernels)/.*)", file):
                return f"{ours[1]}:{line}"
            at = parent if parent != at else 0
        traced = re.search(r'op_name="([^"]*)"', operation.rest)
        return re.sub(r"jit\([^)]*\)/|closed_call/", "", traced[1]) if traced else operation.name

    @functools.cached_property
    def _frames(self) -> dict[int, tuple[int, int]]:
        rows = re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", self.text, re.MULTILINE
        )
        return {int(n): (int(location), int(parent or 0)) for n, location, parent in rows}

    @functools.cached_property
    def _locations(self) -> dict[int, tuple[str, int]]:
        files = dict(re.findall(r'^(\d+) "(/[^"]*)"$', self.text, re.MULTILINE))
        rows = re.findall(
            r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)", self.text, re.MULTILINE
        )
        return {int(n): (files.get(file, ""), int(line)) for n, file, line in rows}
