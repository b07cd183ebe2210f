"""The bandwidth model: the time of a collective from its bytes, the pod's topology and its links.

Every figure here is a lower bound from the published bandwidth of the links (`CHIPS`), without
latency. Formulas for a ring and for several axes at once: "How to Scale Your Model"
(jax-ml.github.io/scaling-book), part 3; an axis without wraparound is bounded by the one link of
the chip at its end. The twisted torus that some v4 and v5p topologies offer is not modelled.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jax.sharding import Mesh

from kernels.static.chips import CHIPS, Chip

FULL_SIDE = 16  # chips along an axis of a 2D pod (v5e, v6e) that is connected to a ring
CUBE = 4  # the axes of a 3D pod (v4, v5p, TPU7x) are rings if all are multiples of this

Groups = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Axis:
    """The part of a topology's axis that a group of devices spans.

    Args:
      size: chips of the group along it.
      rate: bytes per second of a link in one direction, for this group.
      is_ring: whether the last chip is connected to the first one.
    """

    size: int
    rate: float
    is_ring: bool

    @property
    def distance(self) -> float:
        """Mean number of links between two chips of a ring; half of that of a line's ends."""
        return (self.size // 2) * ((self.size + 1) // 2) / self.size


@dataclass(frozen=True)
class Interconnect:
    """Where each device of a program is, and how fast its links are.

    Args:
      chip: figures of the chip.
      positions: coordinates of each device's chip, by the number that the HLO gives the device.
      slices: the slice of each device.
      shape: name and size of each mesh axis, in the order of the numbers.
    """

    chip: Chip
    positions: tuple[tuple[int, ...], ...]
    slices: tuple[int, ...]
    shape: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, mesh: Mesh, chip: str) -> Interconnect:
        """Returns the interconnect of a mesh of TPU devices; `chip` is a key of `chips.CHIPS`."""
        devices = list(mesh.devices.flat)
        positions = tuple(tuple(device.coords)[: CHIPS[chip].axes] for device in devices)
        slices = tuple(getattr(device, "slice_index", 0) for device in devices)
        return cls(CHIPS[chip], positions, slices, tuple(mesh.shape.items()))

    @functools.cached_property
    def sides(self) -> tuple[int, ...]:
        """Chips along each axis of a slice."""
        return tuple(max(places) + 1 for places in zip(*self.positions))

    @property
    def per_slice(self) -> int:
        """Devices of one slice."""
        return len(self.slices) // len(set(self.slices))

    @property
    def across_slices(self) -> list[list[int]]:
        """The groups of devices that are at the same place of each slice."""
        devices = range(len(self.slices))
        return [list(devices[first :: self.per_slice]) for first in range(self.per_slice)]

    def is_ring(self, axis: int) -> bool:
        """Returns whether an axis of the topology has a wraparound."""
        if len(self.sides) == 2:
            return self.sides[axis] == FULL_SIDE
        return all(side % CUBE == 0 for side in self.sides)

    def mesh_axes(self, groups: Groups) -> str:
        """Returns the names of the mesh axes that devices of a group differ in."""
        varying = set()
        for group in groups:
            first, *others = map(self._mesh_position, group)
            for other in others:
                varying |= {name for name in other if other[name] != first[name]}
        return " x ".join(name for name, _ in self.shape if name in varying) or "no axis"

    def _mesh_position(self, device: int) -> dict[str, int]:
        position = {}
        for name, size in reversed(self.shape):
            device, position[name] = divmod(device, size)
        return position

    def seconds(self, kind: str, nbytes: int, groups: Groups) -> float:
        """Returns the time of a collective that all its groups run at once.

        Args:
          kind: a name in `hlo.COLLECTIVES`.
          nbytes: bytes on one device. Of an all-gather the output, of a reduce-scatter the input,
            of the others either.
          groups: the devices of each group; of a collective-permute the pairs (source, target).

        Raises:
          ValueError: for another kind.
        """
        if kind == "collective-permute":
            return self._permute(nbytes, groups)
        # A group of one device moves nothing.
        groups = [group for group in groups if len(group) > 1]
        if kind in ("all-to-all", "ragged-all-to-all"):
            return max((self._all_to_all(nbytes, group) for group in groups), default=0.0)
        # An all-reduce is a reduce-scatter and then an all-gather.
        passes = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
        if kind not in passes:
            raise ValueError(f"no bandwidth model of the collective {kind}")
        return passes[kind] * max((self._gather(nbytes, group) for group in groups), default=0.0)

    def _gather(self, nbytes: int, group: Sequence[int]) -> float:
        """Returns the time until every device of the group has all `nbytes` of it."""
        slices = len({self.slices[device] for device in group})
        inside = [device for device in group if self.slices[device] == self.slices[group[0]]]
        chips = {self.positions[device] for device in inside}
        # On a TPU7x two devices share a chip and its links.
        per_chip = len(inside) // len(chips)
        seconds = 0.0
        if axes := self._axes(chips):
            # A chip at the end of a line has one link there; a chip of a ring has two.
            rate = sum(axis.rate * (2 if axis.is_ring else 1) for axis in axes)
            # Devices of a chip that are in other groups take their share of its links.
            share = self.chip.devices_per_chip // per_chip
            # Every chip receives all but its own part, over all its links at once (scaling book,
            # part 3).
            seconds = nbytes * (1 - 1 / len(chips)) * share / rate
        if per_chip > 1:
            # The devices of a chip receive a part each and give it to one another meanwhile.
            exchanged = nbytes * (1 - 1 / per_chip)
            seconds = max(seconds, exchanged / self.chip.between_devices)
        if slices > 1:
            received = nbytes / len(inside) * (1 - 1 / slices)
            # Added, as if the two networks worked one after the other.
            seconds += received / (self.chip.network / self.chip.devices_per_chip)
        return seconds

    def _all_to_all(self, nbytes: int, group: Sequence[int]) -> float:
        """Returns the time in which each device sends every other one its part of `nbytes`."""
        slices = len({self.slices[device] for device in group})
        inside = [device for device in group if self.slices[device] == self.slices[group[0]]]
        chips = {self.positions[device] for device in inside}
        sent = nbytes * self.chip.devices_per_chip  # every device of a chip sends
        times = [0.0]
        for axis in self._axes(chips):
            # Both directions of a ring share the load; all of a line's passes its middle link. What
            # is for other slices goes over the network.
            load = sent / slices * axis.distance
            times.append(load / axis.rate / (2 if axis.is_ring else 1))
        # Without links: the bytes between the devices of a chip.
        neighbours = len(inside) // len(chips) - 1
        if neighbours:
            times.append(nbytes * neighbours / len(group) / self.chip.between_devices)
        if slices > 1:
            times.append(sent * (1 - 1 / slices) / self.chip.network)
        return max(times)

    def _axes(self, chips: set[tuple[int, ...]]) -> list[Axis]:
        """Returns the axes of the topology that the chips of a group span."""
        axes = []
        for index, places in enumerate(zip(*sorted(chips))):
            distinct = sorted(set(places))
            if len(distinct) == 1:
                continue
            # A group on every second chip shares its links with the group on the others.
            stride = min(after - place for place, after in itertools.pairwise(distinct))
            # Only a group that spans the full axis can use the wraparound link.
            closes = len(distinct) * stride == self.sides[index]
            is_ring = closes and self.is_ring(index)
            axes.append(Axis(len(distinct), self.chip.link / stride, is_ring))
        return axes

    def _permute(self, nbytes: int, pairs: Groups) -> float:
        """Returns the time of the busiest link, if messages follow one axis after the other."""
        links: Counter[tuple] = Counter()
        crossing: Counter[tuple] = Counter()  # devices of a chip that send to another slice
        for source, target in pairs:
            start, end = self.positions[source], self.positions[target]
            if self.slices[source] != self.slices[target]:
                crossing[self.slices[source], start] += 1
                continue
            for link in self._route(start, end):
                links[self.slices[source], *link] += 1
        busiest = max(links.values(), default=0) * nbytes / self.chip.link
        outside = max(crossing.values(), default=0) * nbytes / self.chip.network
        is_inside = any(source != target for source, target in pairs) and not links
        between = nbytes / self.chip.between_devices if is_inside and not crossing else 0.0
        return max(busiest, outside, between)

    def _route(self, start: tuple[int, ...], end: tuple[int, ...]) -> list[tuple]:
        """Returns the links (chip, axis, direction) on the shortest way between two chips."""
        links, place = [], list(start)
        for axis, side in enumerate(self.sides):
            distance = end[axis] - start[axis]
            # The other way round the ring is shorter.
            if self.is_ring(axis) and abs(distance) > side / 2:
                distance -= int(math.copysign(side, distance))
            direction = 1 if distance > 0 else -1
            for _ in range(abs(distance)):
                links.append((tuple(place), axis, direction))
                place[axis] = (place[axis] + direction) % side
        return links
