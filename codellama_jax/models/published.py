"""Where a published tensor is in a parameter of ours."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Place:
    """A published tensor is a section of a parameter along one axis, its axes permuted.

    Published tensors are (outputs, inputs) matrices, one per layer; ours are input-major, stacked
    over the layers, and fuse weights that are multiplied together.

    Args:
      param: dotted path of our parameter.
      order: the parameter's axes, L left out: first those of the outputs, then of the inputs.
      rows: how many of them are outputs, which are the matrix's rows.
      axis, start, size: the section along `axis`; size 0 takes all of it.
    """

    param: str
    order: tuple[int, ...]
    rows: int = 1
    axis: int = 0
    start: int = 0
    size: int = 0

    def under(self, prefix: str) -> Place:
        """Returns the same place in the parameter `prefix.param`."""
        # Stacked blocks and the top query layer share one table of places under different prefixes.
        return replace(self, param=f"{prefix}.{self.param}")


@dataclass(frozen=True)
class Packing:
    """How a tensor of a file stores published tensors: several in one, or transposed.

    Args:
      parts: names of the published tensors in it, in the order of their rows.
      groups: 1 stores part after part. Otherwise the rows of every part are divided into this many
        groups, and the file has the first group of every part, then the second, and so on.
      transposed: the file has (inputs, outputs) instead of (outputs, inputs).
    """

    parts: tuple[str, ...]
    groups: int = 1
    transposed: bool = False
