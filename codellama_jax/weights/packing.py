"""Reads and writes tensors of files that hold several published tensors, or a transposed one.

`models.published.Packing` describes them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from codellama_jax.models.published import Packing
from codellama_jax.weights.layout import Index

Shape = tuple[int, ...]


def packed_shape(packing: Packing, shapes: dict[str, Shape]) -> Shape:
    """Returns the shape of the file's tensor; `shapes` are those of the published tensors."""
    rows = sum(shapes[part][0] for part in packing.parts)
    shape = (rows, *shapes[packing.parts[0]][1:])
    return shape[::-1] if packing.transposed else shape


def pack(packing: Packing, parts: list[np.ndarray]) -> np.ndarray:
    """Returns the file's tensor, given its published tensors in the order of `packing.parts`."""
    # From [rows, ...] to [groups, rows per group, ...]: joining along the second axis puts the
    # first group of every part first, then the second ones.
    grouped = []
    for part in parts:
        grouped.append(part.reshape(packing.groups, -1, *part.shape[1:]))
    packed = np.concatenate(grouped, axis=1).reshape(-1, *parts[0].shape[1:])
    return packed.T if packing.transposed else packed


def read_part(
    packing: Packing,
    name: str,
    shapes: dict[str, Shape],
    index: Index,
    read: Callable[[Index], np.ndarray],
) -> np.ndarray:
    """Returns a part of one published tensor.

    Args:
      packing: how the file's tensor holds it.
      name: the published tensor.
      shapes: the shapes of the published tensors.
      index: the part of the tensor, one slice per axis.
      read: returns a part of the file's tensor.
    """
    # Rows of each part in one group, and where this tensor starts in it.
    rows = {part: shapes[part][0] // packing.groups for part in packing.parts}
    offset = sum(rows[part] for part in packing.parts[: packing.parts.index(name)])

    def read_rows(start: int, stop: int) -> np.ndarray:
        # A transposed file has (inputs, outputs): the index is reversed, and the part turned back.
        place = (slice(start, stop), *index[1:])
        return read(place[::-1]).T if packing.transposed else read(place)

    start, stop, _ = index[0].indices(shapes[name][0])
    if packing.groups == 1:
        return read_rows(offset + start, offset + stop)
    # The groups that hold these rows, complete, and of each group the rows of this tensor.
    # In a group the rows of all parts follow each other: `total` rows, of which `size` are ours.
    size, total = rows[name], sum(rows.values())
    first, last = start // size, -(-stop // size)
    groups = read_rows(first * total, last * total)
    part = groups.reshape(last - first, total, *groups.shape[1:])[:, offset : offset + size]
    return part.reshape(-1, *groups.shape[1:])[start - first * size : stop - first * size]
