"""The collectives of a program: bytes, mesh axes, time, and how much of it the schedule hides.

The compiler estimates no collective, so their times are those of the bandwidth model
(interconnect.py). The HLO lists operations in the order in which they run. An operation between the
start and the end of a collective hides as much of it as the operation lasts. A collective without
separate start and end hides nothing, unless it is in one fusion with other work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from codellama_jax.compile.hlo import COLLECTIVES, Operation, Program, arrays, nbytes
from codellama_jax.compile.interconnect import Interconnect
from codellama_jax.compile.replica_groups import groups_of

# The compiler spreads some collectives over several fusions: the first one starts it, matmul
# fusions continue it, and the last one waits for it. Custom calls mark the first and the last.
START, DONE = (
    'custom_call_target="AsyncCollectiveStart"',
    'custom_call_target="AsyncCollectiveDone"',
)
# Between slices the hosts communicate: the program sends its part of a sum and receives the sum.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OPERAND = re.compile(r"%([^\s,)]+)")


@dataclass
class Collective:
    """All collectives of a kind over the same mesh axes in one step.

    Args:
      kind: a name in `hlo.COLLECTIVES`.
      axes: the mesh axes that they communicate over.
      count: number of them that run.
      bytes: sum over them of the larger one of input and output, on one device.
      seconds: sum of their times by the bandwidth model.
      exposed: the part of `seconds` in which no computation runs.
    """

    kind: str
    axes: str
    count: int = 0
    bytes: int = 0
    seconds: float = 0.0
    exposed: float = 0.0


@dataclass
class _Transfer:
    """A collective that was started: its sums, what names its end, and the seconds left of it."""

    sums: Collective
    key: str
    left: float


@dataclass
class Schedule:
    """The order in which a program computes and communicates.

    Args:
      program: the program.
      interconnect: where its devices are.
      clock: cycles per second.
      kernels: seconds of one run of each Pallas kernel, by the name of its operation.
    """

    program: Program
    interconnect: Interconnect
    clock: float
    kernels: Mapping[str, float]
    _sums: dict[tuple[str, str], Collective] = field(default_factory=dict)
    _times: dict[str, float] = field(default_factory=dict)

    def collectives(self) -> list[Collective]:
        """Returns the collectives of a step by kind and mesh axes."""
        self._sums = {}
        self._walk(self.program.entry, 1)
        return [self._sums[key] for key in sorted(self._sums)]

    def seconds(self, name: str) -> float:
        """Returns the time that a computation takes to run once, without its collectives."""
        # A computation may be called from several places; its time is the same for each.
        if name not in self._times:
            operations = self.program.computations[name]
            self._times[name] = sum(self._duration(operation) for operation in operations)
        return self._times[name]

    def _duration(self, operation: Operation) -> float:
        """Returns the time of an operation and of the computations that it runs."""
        seconds = operation.cycles / self.clock + self.kernels.get(operation.name, 0.0)
        if operation.kind == "while":
            body, iterations = self.program.loop(operation)
            seconds += iterations * self.seconds(body)
        return seconds + sum(self.seconds(name) for name in self.program.called(operation))

    def _walk(self, name: str, runs: int) -> None:
        """Adds the collectives of a computation that runs `runs` times to the sums."""
        transfers: list[_Transfer] = []  # the started ones; the links carry them in this order
        for operation in self.program.computations[name]:
            if operation.kind == "while":
                body, iterations = self.program.loop(operation)
                self._walk(body, runs * iterations)
            elif operation.kind in ("call", "conditional"):
                for called in self.program.called(operation):
                    self._walk(called, runs)
            duration = self._duration(operation)
            role, key, parts = self._role(operation, transfers)
            # Before the operation's own duration: waiting happens first, so that it hides nothing
            # of it.
            if role == "end":
                _wait(transfers, key, runs)
            for part, kind in parts:
                transfer = _Transfer(*self._add(part, kind, runs, key))
                if role == "start":
                    transfers.append(transfer)
                else:
                    # A collective in one fusion with other work overlaps with that work alone.
                    _hide([transfer], duration)
                    transfer.sums.exposed += transfer.left * runs
            _hide(transfers, duration)
        # What no operation of this computation waits for is not known to be hidden.
        if transfers:
            _wait(transfers, transfers[-1].key, runs)

    def _role(
        self, operation: Operation, transfers: list[_Transfer]
    ) -> tuple[str, str, list[tuple[Operation, str]]]:
        """Returns what an operation does with collectives.

        Returns:
          `start`, `end`, `both`, or "" for nothing; what names the collective until its end; and
          the collectives that it starts, each with its kind.
        """
        kind = operation.kind
        if kind in COLLECTIVES:
            return "both", "", [(operation, kind)]
        if kind.endswith("-done"):
            return "end", _first_operand(operation), []
        if kind.removesuffix("-start") in COLLECTIVES:
            return "start", operation.name, [(operation, kind.removesuffix("-start"))]
        if kind == "recv" and (transfer := _BETWEEN_SLICES.search(operation.rest)):
            return "start", operation.name, [(operation, transfer[1].lower().replace("_", "-"))]
        if kind not in ("fusion", "async-start"):
            return "", "", []
        inside = list(self._inside(operation))
        parts = [(part, part_kind) for part, part_kind in inside if part_kind in COLLECTIVES]
        if not parts:
            return "", "", []
        if kind == "async-start":
            return "start", operation.name, parts
        key = _channel(parts[0][0])
        marks = " ".join(part.rest for part, _ in inside if part.kind == "custom-call")
        if START in marks:
            return "start", key, parts
        if DONE in marks:
            return "end", key, []
        # A fusion between start and end continues a transfer that was counted at its start.
        is_step = any(transfer.key == key for transfer in transfers)
        return ("", "", []) if is_step else ("both", "", parts)

    def _inside(self, operation: Operation) -> Iterator[tuple[Operation, str]]:
        """Yields the operations of the computations that an operation runs, and their kinds."""
        for name in self.program.called(operation):
            for part in self.program.computations[name]:
                # A fusion of an all-reduce with the slice that keeps this device's part.
                is_scatter = part.kind == "all-reduce" and name.startswith("all-reduce-scatter")
                yield part, "reduce-scatter" if is_scatter else part.kind
                yield from self._inside(part)

    def _add(
        self, operation: Operation, kind: str, runs: int, key: str
    ) -> tuple[Collective, str, float]:
        """Adds a collective to the sums; returns them, the key, and its seconds."""
        if operation.kind == "recv":
            groups = self.interconnect.across_slices
        else:
            # The numbers of the HLO are those of one slice.
            groups = groups_of(operation.rest, self.interconnect.per_slice)
        size = transferred(operation, kind, len(groups[0]))
        seconds = self.interconnect.seconds(kind, size, groups)
        axes = self.interconnect.mesh_axes(groups)
        # One line of the report per kind and axes; a step has hundreds of single collectives.
        sums = self._sums.setdefault((kind, axes), Collective(kind, axes))
        sums.count += runs
        sums.bytes += runs * size
        sums.seconds += runs * seconds
        return sums, key, seconds


def transferred(operation: Operation, kind: str, group: int) -> int:
    """Returns the larger one of a collective's input and output, in bytes on one device.

    Args:
      operation: the collective.
      kind: a name in `hlo.COLLECTIVES`.
      group: devices that communicate with one another.
    """
    is_start = operation.kind.endswith("-start")
    has_state = is_start or operation.kind == "recv"
    sizes = []
    for dtype, shape, _ in arrays(operation.type):
        # Scalars beside the result of a start are the state of its transfer.
        if shape or not has_state:
            sizes.append(nbytes(dtype, shape))
    total = sum(sizes)
    if is_start and kind != "all-reduce":
        # The type of such a start holds the input beside the output.
        smaller = 1 / group if kind in ("all-gather", "reduce-scatter") else 1
        return round(total / (1 + smaller))
    # The result of a reduce-scatter is one device's part; its input is `group` times as large.
    is_part = kind == "reduce-scatter" and operation.kind == kind
    return total * group if is_part else total


def _hide(transfers: list[_Transfer], seconds: float) -> None:
    """Lets the transfers proceed for some seconds, one after the other."""
    for transfer in transfers:
        done = min(seconds, transfer.left)
        transfer.left -= done
        seconds -= done


def _wait(transfers: list[_Transfer], key: str, runs: int) -> None:
    """Ends a transfer and those before it; what is left of them is exposed."""
    keys = [transfer.key for transfer in transfers]
    if key not in keys:  # the end of something else, such as a copy
        return
    end = keys.index(key) + 1
    for transfer in transfers[:end]:
        transfer.sums.exposed += transfer.left * runs
    del transfers[:end]


def _channel(operation: Operation) -> str:
    channel = _CHANNEL.search(operation.rest)
    return f"channel {channel[1]}" if channel else operation.name


def _first_operand(operation: Operation) -> str:
    operand = _OPERAND.search(operation.rest)
    return operand[1] if operand else ""
