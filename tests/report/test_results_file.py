"""Results files hold numbers only; README's table is what they give."""

import itertools
import json

import pytest
from paths import ROOT

from codellama_jax.errors import UserError
from codellama_jax.report.findings import Finding
from codellama_jax.report.results_file import (
    BEGIN,
    END,
    Measured,
    read_results,
    rewrite,
    table,
    write_results,
)
from codellama_jax.report.verdicts import Difference, Trend

RESULTS = ROOT / "docs" / "results"
AGREES, DISAGREES, UNDECIDED = [1.0, 1.1, 1.2], [-1.0, -1.1, -1.2], [-1.0, 1.0, 2.0]
TOKENS = [1e6, 2e6]


def measured(*values: list[float], trends: tuple[Trend, ...] = ()) -> Measured:
    differences = [Difference(f"claim {i}", "nats", v) for i, v in enumerate(values)]
    texts = ("Is it so?", (), [], [], differences, "small.", "table 1")
    finding = Finding(*texts, trends=trends)
    return Measured.of("toy_file", "toy", finding)


def falling(values: list[float]) -> Trend:
    return Trend("gap", "nats", TOKENS, [[value + 1, value] for value in values], "below", 0.5)


@pytest.mark.parametrize(
    ("numbers", "verdict", "phrases"),
    [
        (measured(AGREES, AGREES), "agrees", ["2 of 2 agree: claim 0: +1.1 (+0.852 to +1.35)"]),
        (measured(AGREES, UNDECIDED), "undecided", ["1 of 2 agree", "undecided: claim 1"]),
        (
            measured(DISAGREES, UNDECIDED, AGREES),
            "disagrees",
            ["1 of 3 agree", "disagrees: claim 0", "undecided: claim 1", "Seeds: 3"],
        ),
        (
            measured(trends=(falling(DISAGREES),)),
            "agrees",
            ["-1 per doubling of the tokens (-1 to -1), towards the paper", "expected below 0.5"],
        ),
        (measured(AGREES, trends=(falling(AGREES),)), "disagrees", ["disagrees: gap"]),
        (measured([1.0]), "undecided", ["needs 2 seeds"]),
    ],
)
def test_a_file_gives_the_verdict_of_its_numbers(tmp_path, numbers, verdict, phrases):
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    write_results(folder / "toy_file.json", numbers)
    assert "agrees" not in (folder / "toy_file.json").read_text()  # no verdict is stored
    assert read_results(folder / "toy_file.json") == numbers
    assert numbers.verdict == verdict
    row = table(folder).splitlines()[-1]
    assert f"| `toy_file.py` | Is it so? | table 1 | [{verdict}](docs/results/toy_file.md) |" in row
    assert all(phrase in row for phrase in phrases), row


def test_another_number_changes_the_verdict(tmp_path):
    path = tmp_path / "e.json"
    write_results(path, measured(AGREES))
    content = json.loads(path.read_text())
    content["differences"][0]["values"] = DISAGREES
    path.write_text(json.dumps(content))
    assert read_results(path).verdict == "disagrees"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("differences", [], "needs a difference"),
        ("question", 3, "question is 3"),
        ("verdict", "agrees", "no field verdict"),
    ],
)
def test_a_damaged_file_is_one_line_with_the_fix(tmp_path, field, value, message):
    path = tmp_path / "e.json"
    write_results(path, measured(AGREES))
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=f"e.json: .*{message}.*make ablations"):
        read_results(path)


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_its_markers_is_refused(tmp_path, page):
    with pytest.raises(UserError, match="one line <!-- verdicts"):
        rewrite(page, tmp_path)


def test_readme_has_the_verdicts_of_the_results_files():
    """`make verdicts` writes them again."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert text == rewrite(text, RESULTS)


def verdicts_of(report: str, table: str) -> list[str]:
    """Returns the second column of the report's table whose first heading is `table`."""
    lines = report.splitlines()
    verdicts = []
    for number, line in enumerate(lines):
        if line.startswith(f"| {table} | verdict"):
            rows = itertools.takewhile(lambda row: row.startswith("| "), lines[number + 2 :])
            verdicts += [row.split(" | ")[1] for row in rows]
    return verdicts


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_report_has_the_verdicts_of_its_results_file(path):
    report = path.with_suffix(".md").read_text("utf-8")
    numbers = read_results(path)
    assert numbers.experiment == path.stem
    assert verdicts_of(report, "difference") == [d.verdict for d in numbers.decisive]
    assert verdicts_of(report, "trend") == [trend.longest.verdict for trend in numbers.trends]
