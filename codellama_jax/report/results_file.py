"""The measured differences of an experiment as a small JSON file, and the table made from them.

`run` writes `finding.json` beside the report, and `make ablations` copies it to docs/results. The
file has numbers only. Every verdict is computed when the file is read (`report/verdicts.py`), so
that no table can contradict the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from codellama_jax.checked import Checked, FieldError, from_dict, to_dict
from codellama_jax.errors import UserError
from codellama_jax.report.findings import Finding
from codellama_jax.report.verdicts import Difference, Trend, Verdict, decisive, worst
from codellama_jax.system.files import read_json, write_json

BEGIN = "<!-- verdicts: `make verdicts` writes this table from docs/results/*.json -->"
END = "<!-- end of verdicts -->"
HEADINGS = ("file", "question", "in the paper", "at toy scale", "measured")


@dataclass(frozen=True)
class Measured(Checked):
    """The numbers of a finding, without the texts that only the report needs."""

    experiment: str
    scale: str
    question: str
    source: str  # the paper's figure or table
    differences: tuple[Difference, ...]
    trends: tuple[Trend, ...] = ()

    @classmethod
    def of(cls, experiment: str, scale: str, finding: Finding) -> Measured:
        """Returns the numbers of the finding of an experiment at a scale."""
        return cls(
            experiment,
            scale,
            finding.question,
            finding.source,
            tuple(finding.differences),
            tuple(finding.trends),
        )

    def check_relations(self) -> None:
        """Raises FieldError for a finding without a difference: it would agree with anything."""
        if not self.differences and not self.trends:
            raise FieldError(("differences",), " is empty: a verdict needs a difference")

    @property
    def decisive(self) -> list[Difference]:
        """Returns the differences that decide the verdict."""
        return decisive(self.differences, self.trends)

    @property
    def verdict(self) -> Verdict:
        """Returns the worst verdict of a difference."""
        return worst(difference.verdict for difference in self.decisive)


def write_results(path: epath.Path, measured: Measured) -> None:
    """Writes a results file."""
    write_json(path, to_dict(measured))


def read_results(path: Path) -> Measured:
    """Returns the numbers of a results file. Raises UserError for a file of another form."""
    try:
        return from_dict(Measured, read_json(path))
    except FieldError as error:
        raise UserError(f"{path}: {error}: `make ablations` writes the file again") from None


def table(folder: Path) -> str:
    """Returns the table of verdicts in Markdown, a line for each results file of a folder.

    Links lead to the reports beside the files, relative to the folder's second parent.
    """
    lines = [_row(HEADINGS), f"|{'---|' * len(HEADINGS)}"]
    for path in sorted(folder.glob("*.json")):
        measured = read_results(path)
        # Both files have the name of the experiment: the numbers as JSON, the report as Markdown.
        report = path.with_suffix(".md").relative_to(folder.parents[1]).as_posix()
        verdict = f"[{measured.verdict}]({report})"
        cells = (measured.question, measured.source, verdict, summary(measured))
        lines.append(_row((f"`{measured.experiment}.py`", *cells)))
    return "\n".join(lines)


def rewrite(text: str, folder: Path) -> str:
    """Returns the text of a page with the table of verdicts between its markers.

    Raises UserError for a page that does not have both markers, once each and in order.
    """
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    # A second marker would be kept as text and end up inside the next table.
    if not (found_begin and found_end) or BEGIN in rest or END in after:
        raise UserError(f"the page needs one line {BEGIN} and, below it, one line {END}")
    return f"{before}{BEGIN}\n\n{table(folder)}\n\n{END}{after}"


def summary(measured: Measured) -> str:
    """Returns the differences that do not agree with the paper, or all if all agree; the trends."""
    differences = measured.decisive
    # In the order in which they are printed: the worst verdicts matter most.
    by_verdict: dict[Verdict, list[Difference]] = {"disagrees": [], "undecided": [], "agrees": []}
    for difference in differences:
        by_verdict[difference.verdict].append(difference)
    agree = by_verdict.pop("agrees")
    parts = [f"{len(agree)} of {len(differences)} agree"]
    for verdict, several in by_verdict.items():
        if several:
            parts.append(f"{verdict}: {'; '.join(map(_numbers, several))}")
    # If all agree there is nothing to explain, and the numbers themselves are shown instead.
    if len(agree) == len(differences):
        parts[0] += f": {'; '.join(map(_numbers, agree))}"
    for trend in measured.trends:
        slope = f"{trend.slope.mean:+.3g} per doubling of the tokens ({trend.slope.text()})"
        parts.append(f"trend of {trend.name}: {slope}, {trend.direction}")
    seeds = min(len(difference.values) for difference in differences)
    return f"{'. '.join(parts)}. Seeds: {seeds}"


def _numbers(difference: Difference) -> str:
    """Returns name, mean, interval and, unless it is 0, the bound of a difference."""
    interval = difference.interval
    numbers = f"{difference.name}: {interval.mean:+.3g} ({interval.text()}) {difference.unit}"
    numbers = numbers.rstrip()  # an exponent has no unit
    if difference.bound:
        return f"{numbers}, expected {difference.expected} {difference.bound:g}"
    return numbers


def _row(cells: Sequence[str]) -> str:
    # A bar would end the cell of a Markdown table.
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
