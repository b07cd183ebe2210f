"""Numbers that papers measured on a benchmark. Results are printed beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PASS = ("pass@1", "pass@10", "pass@100")


@dataclass(frozen=True)
class Paper:
    """A table of papers' numbers in percent.

    Attributes:
        columns: names of measures, as in results.
        rows: one line per model: its name, then one number per column.
    """

    columns: tuple[str, ...]
    rows: str

    def numbers(self) -> dict[str, dict[str, float]]:
        """Returns the table as {model: {measure: value}}."""
        table = {}
        for line in self.rows.split("\n"):
            if line.strip():
                # From the right, because names contain spaces.
                name, *values = line.rsplit(maxsplit=len(self.columns))
                table[name.strip()] = dict(zip(self.columns, map(float, values), strict=True))
        return table


def crossed(groups: Iterable[str], measures: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the columns "GROUP MEASURE" of all measures for each group of tasks."""
    columns = []
    # Group by group, because the papers' rows are written in that order.
    for group in groups:
        columns += [f"{group} {measure}" for measure in measures]
    return tuple(columns)
