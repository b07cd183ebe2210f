"""What the experiment files make of answers: a paper's worth of numbers agrees, the same turned round disagrees."""

import inspect

import pytest

from codellama_jax.report.findings import Finding
from codellama_jax.report.results import StageResult
from codellama_jax.runs.commands import PlanOptions, load_experiment

SEEDS = 3


def found(name: str, answer) -> Finding:
    """The finding of an experiment whose last stages answer `answer(arm, seed)`."""
    experiment, module = load_experiment(PlanOptions(name, "toy"))
    results = {
        arm: [
            [
                StageResult(stage, config, [], [], answer(arm, seed / 100))
                for stage, config in chain.items()
            ]
            for seed in range(1, SEEDS + 1)
        ]
        for arm, chain in experiment.arms.items()
    }
    assert "Claim" in inspect.cleandoc(module.__doc__)
    return module.finding(results)


def infilling(ahead: float):
    """Losses of which SPM is `ahead` on lines and behind on spans."""
    of = lambda loss: {"exact": [0.0, 1.0], "right": [0.5, 0.7], "loss": [loss, loss]}
    line = lambda seed: {"PSM": of(1.0 + seed * ahead), "SPM": of(1.0)}
    span = lambda seed: {"PSM": of(1.0), "SPM": of(1.0 + seed * ahead), "SPM, healed": of(1.0)}
    return lambda arm, seed: {
        "infilling_kinds": {
            "single-line": line(1 + seed),
            "multi-line": line(1 + seed),
            "random-span": span(1 + seed),
        }
    }


BEST = {"long_1e6": 0.0, "long_scaled": 0.2, "long_1e4": 0.4, "code": 0.6, "inference_1e6": 0.8}


def positions(ahead: float):
    def answer(arm: str, seed: float) -> dict:
        worse = ahead * BEST[arm] * (1 + seed)
        of = {"retrieved": [0.0, 1.0], "gain": [5 - worse]}
        keys = {str(n): {"0": of, "0.2": of, "0.4": of} for n in (256, 512, 1024, 1536)}
        by_length = {
            str(n): {"last_block": 30 + worse, "perplexity": 30}
            for n in (128, 256, 512, 1024, 2048)
        }
        return {"key_retrieval": keys, "perplexity": by_length}

    return answer


def passes(ahead: float):
    return lambda arm, seed: {
        "line_ends": {
            f"{t:g}": {
                "pass@1": 0.4 - t * ahead * (0.1 + seed),
                "pass@10": 0.5 + t * ahead * (0.1 + seed),
                "pass@100": 0.5 + t * ahead * 0.2,
            }
            for t in (0.1, 0.4, 0.6, 0.8)
        }
    }


@pytest.mark.parametrize(
    ("name", "answer"),
    [("psm_vs_spm", infilling), ("rope_theta", positions), ("temperature", passes)],
)
def test_verdicts_follow_the_answers(name, answer):
    agrees, disagrees = found(name, answer(1.0)), found(name, answer(-1.0))
    assert {d.verdict for d in agrees.differences} == {"agrees"}
    assert {d.verdict for d in disagrees.differences} == {"disagrees"}
    for finding in (agrees, disagrees):
        assert all(len(row) == len(finding.headings) for row in finding.rows)
        assert all(panel.lines for _, panels in finding.figures for panel in panels)


def quickstart(ratio: float, bigram: float, exact: float, longer: float) -> list[bool]:
    """Whether each expectation of the quickstart is met by stages that measured this."""
    experiment, module = load_experiment(PlanOptions("quickstart", "toy"))
    chain = []
    for perplexity, (name, stage) in zip((30.0, longer), experiment.arms["main"].items()):
        infilling = {"PSM": {"exact": 0.0, "examples": 8}, "SPM": {"exact": exact, "examples": 8}}
        probes = {
            "bigram": {"loss": bigram},
            "infilling": infilling,
            "perplexity": {"1024": {"perplexity": perplexity}},
        }
        losses = [{"step": 0, "validation_loss": 8.0}, {"step": 1, "validation_loss": 8.0 * ratio}]
        chain.append(StageResult(name, stage, [], losses, probes))
    return [expectation.met for expectation in module.finding({"main": [chain]})]


def test_expectations_of_the_quickstart_can_fail():
    assert quickstart(0.5, 4.5, 0.125, 20.0) == [True, True, True, True]
    assert quickstart(0.7, 4.5, 0.0, 40.0) == [False, False, False, False]
