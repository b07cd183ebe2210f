"""The verdict on exact lines follows the measures of the probe, by seed."""

import pytest

from codellama_jax.errors import UserError
from codellama_jax.report.findings import Finding
from codellama_jax.report.results import StageResult
from codellama_jax.runs.commands import PlanOptions, load_experiment
from experiments import exact_lines

SEEDS = 3


def finding_of(shares: dict[str, tuple[float, float]]) -> Finding:
    """Returns the finding of a run with these shares of exact lines in both halves, by order."""
    experiment, module = load_experiment(PlanOptions("exact_lines", "toy"))
    results: dict = {"both": []}
    for seed in range(SEEDS):
        chain = []
        for half, (name, stage) in enumerate(experiment.arms["both"].items()):
            formats = {}
            for order, by_half in shares.items():
                share = by_half[half] + seed / 1000
                measures = {key: [share] for key in ("exact", "first", "tokens")}
                formats[order] = {**measures, "loss": [1.0, 3.0]}
            probes = {"infilling_kinds": {"single-line": formats}}
            validation = [{"step": stage.steps, "tokens": 1000, "validation_loss": 1.0}]
            chain.append(StageResult(name, stage, [], validation, probes))
        results["both"].append(chain)
    return module.finding(results)


def verdicts(shares: dict[str, tuple[float, float]]) -> list[str]:
    return [difference.verdict for difference in finding_of(shares).differences]


def test_each_verdict_can_agree_and_disagree():
    agrees = {"PSM": (0.1, 0.5), "SPM": (0.6, 0.7)}
    # The seeds of both orders move together, so that their differences have no spread.
    assert verdicts(agrees) == ["agrees"] * 3
    disagrees = {"PSM": (0.15, 0.1), "SPM": (0.05, 0.06)}
    assert verdicts(disagrees) == ["disagrees"] * 3
    assert verdicts({"PSM": (0.1, 0.2), "SPM": (0.6, 0.1)})[0] == "undecided"
    # What the first half reached decides nothing: the paper has no figure of it.
    assert verdicts({"PSM": (0.9, 0.5), "SPM": (0.6, 0.7)}) == ["agrees"] * 3


def test_the_table_has_the_papers_figures_and_the_curve_every_half():
    finding = finding_of({"PSM": (0.1, 0.5), "SPM": (0.6, 0.7)})
    assert all(len(row) == len(finding.headings) for row in finding.rows)
    assert [row[-1] for row in finding.rows] == ["", "67.6%", "", "72.7%"]
    assert [row[2].split()[0] for row in finding.rows] == ["10.1%", "50.1%", "60.1%", "70.1%"]
    assert finding.rows[0][5] == "2.000 (2.000 to 2.000)"
    [(_, [panel])] = finding.figures
    assert panel.lines["PSM"][0] == [(1000, 0.1), (2000, 0.5)]


def test_the_probe_reads_functions_that_no_stage_trains_on():
    experiment = exact_lines.experiment()
    assert experiment.corpus.held_out == "functions:held_out"
    assert set(experiment.corpus.others.values()) == {"functions:programs"}
    with pytest.raises(UserError, match="scale is '7b': it must be toy"):
        exact_lines.experiment("7b")
