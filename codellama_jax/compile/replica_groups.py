"""Reads which devices communicate with one another from the attributes of a collective in the HLO.

XLA writes replica groups as lists, as a reshaped and transposed range of numbers (`[2,64]<=[64,2]
T(1,0)`), or as axes of a mesh (`mesh['axis_0'=64,'axis_1'=2] {'axis_0'}`).
"""

from __future__ import annotations

import math
import re

import numpy as np

from codellama_jax.errors import UserError

_RANGE = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_PAIRS = re.compile(r"source_target_pairs=\{([\d,{}]*)\}")
_LISTS = re.compile(r"replica_groups=\{([\d,{}]*)\}")
_IOTA = re.compile(rf"replica_groups=\[([\d,]+)\]<={_RANGE}")
_MESH = re.compile(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_RANGE}\))? \{{([^}}]*)\}}")
# An axis of the mesh, or the part of one: 'axis_0':(2)4 has 4 of its positions, after 2 others.
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


def groups_of(attributes: str, devices: int) -> list[list[int]]:
    """Returns the groups of devices that communicate; the pairs of a collective-permute.

    Args:
      attributes: operands and attributes of the collective.
      devices: number of devices of the program.

    Raises:
      UserError: for groups in an unknown form.
    """
    if match := _PAIRS.search(attributes) or _LISTS.search(attributes):
        groups = []
        for group in re.findall(r"\{([\d,]+)\}", match[1]):
            groups.append(_numbers(group))
        return groups or [list(range(devices))]
    if match := _IOTA.search(attributes):
        count, size = _numbers(match[1])
        return _range(match[2], match[3]).reshape(count, size).tolist()
    if match := _MESH.search(attributes):
        return _mesh_groups(*match.groups())
    if "replica_groups=" not in attributes:
        return [list(range(devices))]
    form = attributes.partition("replica_groups=")[2][:80]
    raise UserError(f"replica groups in an unknown form, {form!r}: install libtpu 0.0.42")


def _mesh_groups(
    sizes: str, dimensions: str | None, permutation: str | None, axes: str
) -> list[list[int]]:
    """Returns the groups along some axes of a mesh; takes the parts of `_MESH`."""
    shape: dict[str, int] = {}
    for axis in sizes.split(","):
        name, _, number = axis.partition("=")
        shape[name.strip("' ")] = int(number)
    devices = np.arange(math.prod(shape.values()))
    if dimensions:
        devices = _range(dimensions, permutation)
    # Every axis is split into what is before, in and after the part that the groups span.
    parts = {name: (size, 1, 1) for name, size in shape.items()}
    for name, outer, part in _AXIS.findall(axes):
        before, size = int(outer or 1), int(part or shape[name])
        parts[name] = (before, size, shape[name] // (before * size))
    # Now every mesh axis is three dims: before, within and after the part that the groups span.
    split = devices.reshape([size for part in parts.values() for size in part])
    spanned = list(range(1, split.ndim, 3))
    kept = [index for index in range(split.ndim) if index not in spanned]
    group_size = math.prod(split.shape[index] for index in spanned)
    # The spanned dims last: each row of the result is one group.
    return split.transpose(kept + spanned).reshape(-1, group_size).tolist()


def _range(dimensions: str, permutation: str | None) -> np.ndarray:
    """Returns 0, 1, ... in the given dimensions, transposed, as a vector."""
    shape = _numbers(dimensions)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose(_numbers(permutation)) if permutation else numbers).ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
