"""Reads the scheduled HLO of a compiled TPU program: its operations, kernels and buffers.

The compiler writes its estimate of cycles into every operation. A step runs an operation as often
as the loops around it repeat. All loops are JAX scans, which count from zero to a constant in their
condition, so that the number of iterations can be read off the text. Which branch of a conditional
runs cannot: the one with the most cycles counts, and of equal ones that with the most operations.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

DEFAULT_BYTES = 4  # per element of the dtypes that are not in BYTES: f32, s32, u32
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
# Operations that allocate no buffer: their result is an operand, or another name for a part of it.
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
# Operations that run other computations once each time they run, and how these are named.
CALLERS = ("fusion", "call", "async-start")
_CALLED = re.compile(r"(?:calls|to_apply)=%([^\s,}]+)")
# The branches of a conditional: two of a predicate, or a list of any number.
_BRANCH = re.compile(r"(?:true|false)_computation=%([^\s,}]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# Computations inside a fusion, by a part of their name. Their values stay in registers or VMEM.
FUSED = ("fused_computation", "bitcast_fusion", "all-reduce-scatter")

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPERAND = re.compile(r"%([^\s,)]+)")
_CYCLES = re.compile(r'estimated_cycles":"(\d+)"')
_OPERAND_TYPES = re.compile(r"operand_layout_constraints=\{(.*?\})\}, ")
# Suffixes that the compiler adds to the name of a kernel, such as ".3" or ".clone".
_COPY_SUFFIX = re.compile(r"(\.\d+|\.clone)+$")
# A file of this project in a path. The last of the names decides, because the folder of the clone
# may be named codellama_jax, too.
_PROJECT_FILE = re.compile(r".*/((?:codellama_jax|kernels)/.*)")


@dataclass(frozen=True)
class Operation:
    """One line of the HLO.

    Args:
      name: its name in the program.
      type: type of its result, with the layout.
      kind: the operation, such as fusion, while or all-gather.
      rest: operands and attributes.
    """

    name: str
    type: str
    kind: str
    rest: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate of its cycles, 0 where there is none."""
        estimate = _CYCLES.search(self.rest)
        return int(estimate[1]) if estimate else 0

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs once each time it runs."""
        return _CALLED.findall(self.rest) if self.kind in CALLERS else []

    @property
    def branches(self) -> list[str]:
        """Names of the computations of which it runs one each time it runs."""
        if self.kind != "conditional":
            return []
        listed = _BRANCHES.search(self.rest)
        return _OPERAND.findall(listed[1]) if listed else _BRANCH.findall(self.rest)


@dataclass(frozen=True)
class Kernel:
    """A Pallas kernel in a program.

    Args:
      name: the kernel's name, as given to `pl.pallas_call`.
      result: shape of its first result.
      operands: (dtype, shape) of each operand.
      times: how often it runs in one step.
    """

    name: str
    result: tuple[int, ...]
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    times: int

    @property
    def bytes(self) -> int:
        """Bytes of all operands together."""
        return sum(nbytes(dtype, shape) for dtype, shape in self.operands)


@dataclass(frozen=True)
class Buffer:
    """A result in HBM.

    Args:
      bytes: its size.
      type: dtype and shape, such as bf16[8,128].
      source: file:line of the code that it comes from, or the name of its operation.
    """

    bytes: int
    type: str
    source: str


def arrays(type_text: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Returns (dtype, shape, layout) of each array in a type, also inside tuples."""
    without_comments = re.sub(r"/\*.*?\*/", "", type_text)
    result = []
    for dtype, sizes, layout in _ARRAY.findall(without_comments):
        shape = tuple(int(size) for size in sizes.split(",") if size)
        result.append((dtype, shape, layout))
    return result


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Returns the bytes of an array, without the padding of its tiles."""
    return BYTES.get(dtype, DEFAULT_BYTES) * math.prod(shape)


class Program:
    """A parsed HLO module."""

    def __init__(self, text: str):
        self.text = text
        self.entry = ""
        self.computations: dict[str, list[Operation]] = {}
        # A computation is a header line, its operations, indented, and a closing brace.
        operations: list[Operation] = []
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                operations = self.computations[header[2]] = []
                if header[1] or not self.entry:
                    self.entry = header[2]
            elif match := _OPERATION.match(line):
                operations.append(Operation(*match.groups()))

    def trip_count(self, condition: str) -> int:
        """Returns the number of iterations of a loop, the constant in its condition.

        Args:
          condition: name of the computation that decides whether the loop continues.

        Raises:
          ValueError: for a condition that does not compare a counter with a constant.
        """
        operations = {operation.name: operation for operation in self.computations[condition]}
        for operation in operations.values():
            is_comparison = operation.kind == "compare" and "direction=LT" in operation.rest
            # The compiler may move the comparison into a fusion; the constant stays its operand.
            if is_comparison or operation.kind == "fusion":
                for name in _OPERAND.findall(operation.rest.split(")")[0]):
                    if name in operations and operations[name].kind == "constant":
                        return int(operations[name].rest.split(")")[0])
        raise ValueError(f"the loop condition {condition} does not compare with a constant")

    def loop(self, operation: Operation) -> tuple[str, int]:
        """Returns the name of a while loop's body, and its iterations."""
        condition = _attribute(operation, "condition")
        return _attribute(operation, "body"), self.trip_count(condition)

    def called(self, operation: Operation) -> list[str]:
        """Returns the computations that an operation runs once, with the longest of its branches.

        A loop's body is not among them.
        """
        return operation.called or sorted(operation.branches, key=self._length)[-1:]

    def _length(self, name: str) -> tuple[int, int]:
        """Returns the cycles and the number of operations of a computation that runs once."""
        cycles = operations = 0
        for operation in self.computations[name]:
            cycles, operations = cycles + operation.cycles, operations + 1
            runs = dict.fromkeys(self.called(operation), 1)
            if operation.kind == "while":
                runs = dict([self.loop(operation)])
            for part, times in runs.items():
                part_cycles, part_operations = self._length(part)
                cycles += times * part_cycles
                operations += times * part_operations
        return cycles, operations

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs in one step, by its name.

        A computation inside a fusion runs as often as the fusion; a branch that is not the longest
        one of its conditional runs 0 times.
        """
        times: dict[str, int] = {}

        # Walks the calls from the entry on. A computation that is called from several places adds
        # up the runs of all of them.
        def enter(name: str, runs: int) -> None:
            times[name] = times.get(name, 0) + runs
            for operation in self.computations[name]:
                if operation.kind == "while":
                    body, iterations = self.loop(operation)
                    enter(body, runs * iterations)
                called = self.called(operation)
                for part in called:
                    enter(part, runs)
                for branch in operation.branches:
                    if branch not in called:
                        enter(branch, 0)

        enter(self.entry, 1)
        return times

    def operations(self) -> Iterator[tuple[Operation, int]]:
        """Yields each operation of a step with the number of times that it runs.

        Operations inside fusions are included.
        """
        for name, runs in self.times.items():
            # Its buffers exist, but it takes no time.
            if not runs:
                continue
            for operation in self.computations[name]:
                yield operation, runs

    def cycles(self) -> int:
        """Returns the compiler's estimate of the cycles of a step.

        Pallas kernels and collectives have no estimate in the HLO and are left out.
        """
        return sum(operation.cycles * runs for operation, runs in self.operations())

    def kernels(self) -> dict[str, Kernel]:
        """Returns the Pallas kernels that a step runs, by the name of their operation."""
        kernels = {}
        for operation, runs in self.operations():
            is_kernel = 'custom_call_target="tpu_custom_call"' in operation.rest
            if operation.kind != "custom-call" or not is_kernel:
                continue
            # The operands are only names in this line; their types are in the layout constraints.
            types = _OPERAND_TYPES.search(operation.rest)
            operands = []
            for dtype, shape, _ in arrays(types[1] if types else ""):
                operands.append((dtype, shape))
            name = _COPY_SUFFIX.sub("", operation.name)
            _, result, _ = arrays(operation.type)[0]
            kernels[operation.name] = Kernel(name, result, tuple(operands), runs)
        return kernels

    def largest(self, count: int) -> list[Buffer]:
        """Returns the `count` largest results in HBM, one for each type and source line."""
        buffers: dict[tuple[str, str], Buffer] = {}
        for name in self.times:
            if any(part in name for part in FUSED):
                continue
            for operation in self.computations[name]:
                if not _has_buffer(operation):
                    continue
                for dtype, shape, layout in arrays(operation.type):
                    if "S(" in layout:  # in another memory than HBM, such as VMEM
                        continue
                    array_type = f"{dtype}[{','.join(map(str, shape))}]"
                    source = self.source(operation)
                    buffer = Buffer(nbytes(dtype, shape), array_type, source)
                    buffers[array_type, source] = buffer
        return sorted(buffers.values(), key=lambda buffer: -buffer.bytes)[:count]

    def source(self, operation: Operation) -> str:
        """Returns the innermost file:line of this project that an operation comes from.

        Returns the operation's name in JAX or in the compiler if it comes from no such line.
        """
        frame_id = re.search(r"stack_frame_id=(\d+)", operation.rest)
        frame = int(frame_id[1]) if frame_id else 0
        # Frames lead from the innermost call outwards. JAX's and Flax's own files are skipped.
        while frame in self._frames:
            location, parent = self._frames[frame]
            file, line = self._locations[location]
            if project_file := _PROJECT_FILE.match(file):
                return f"{project_file[1]}:{line}"
            frame = parent if parent != frame else 0
        # An operation that the compiler made up has no name in JAX either.
        traced = re.search(r'op_name="([^"]*)"', operation.rest)
        return re.sub(r"jit\([^)]*\)/|closed_call/", "", traced[1]) if traced else operation.name

    @functools.cached_property
    def _frames(self) -> dict[int, tuple[int, int]]:
        """The location and the parent of each stack frame, by its number; parent 0 for none."""
        pattern = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}"
        frames = {}
        for number, location, parent in re.findall(pattern, self.text, re.MULTILINE):
            frames[int(number)] = (int(location), int(parent or 0))
        return frames

    @functools.cached_property
    def _locations(self) -> dict[int, tuple[str, int]]:
        """The file and line of each location, by its number."""
        files = dict(re.findall(r'^(\d+) "(/[^"]*)"$', self.text, re.MULTILINE))
        pattern = r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)"
        locations = {}
        for number, file, line in re.findall(pattern, self.text, re.MULTILINE):
            locations[int(number)] = (files.get(file, ""), int(line))
        return locations


def _attribute(operation: Operation, name: str) -> str:
    """Returns the computation that an attribute of an operation names."""
    match = re.search(rf"{name}=%([^\s,}}]+)", operation.rest)
    if match is None:
        raise ValueError(f"the operation {operation.name} has no {name}")
    return match[1]


def _has_buffer(operation: Operation) -> bool:
    """Returns whether an operation allocates memory for its result."""
    # A dynamic-update-slice writes into its operand; an AllocateBuffer is counted where it is used.
    is_in_place = "dynamic-update-slice" in operation.name
    is_allocation = '"AllocateBuffer"' in operation.rest
    return operation.kind not in NO_BUFFER and not is_in_place and not is_allocation
