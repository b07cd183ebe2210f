"""What papers measured on a benchmark, beside which results are printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PASS = ("pass@1", "pass@10", "pass@100")


@dataclass(frozen=True)
class Paper:
    """A table of papers' numbers in percent. `rows` has one line per model, its name first."""

    columns: tuple[str, ...]  # names of measures, as results have them
    rows: str

    def numbers(self) -> dict[str, dict[str, float]]:
        """Returns the table as {model: {measure: value}}."""
        table = {}
        for line in self.rows.split("\n"):
            if line.strip():
                name, *values = line.rsplit(maxsplit=len(self.columns))
                table[name.strip()] = dict(zip(self.columns, map(float, values), strict=True))
        return table


def crossed(groups: Iterable[str], measures: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the columns of a benchmark that has all measures for each group of tasks."""
    return tuple(f"{group} {measure}" for group in groups for measure in measures)
