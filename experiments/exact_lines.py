"""Exact lines in PSM and SPM order, on generated functions whose lines follow from the context.

Claim     Table 6, exact single lines of Python, 7B: 67.6 % in PSM and 72.7 % in SPM order.
Expected  both orders fill in lines exactly, SPM more of them: there the middle continues its
          prefix, as in any text, while in PSM order a model has to look up where the prefix ends.
Cost      toy, five seeds: 7 minutes on two AMD EPYC cores in two processes (12 of processor time).
Command   python launch.py run experiments/exact_lines.py

A toy that is trained on real files fills in no line exactly in PSM order (psm_vs_spm.py). Training
splits documents at any character, so that most middles begin inside a word, and one in about thirty
at the start of a line. In PSM order the end of the prefix is far from the middle's first token:
until the model has learned to look it up, it begins every middle inside a word, though most of the
later tokens are right. Each document teaches this once, so that documents count, not tokens. The
functions (data/generated_functions.py) are short, and their docstrings state what a line does.
"""

import dataclasses

from codellama_jax.config import CorpusConfig, Experiment, Stage, TokenizerConfig
from codellama_jax.errors import UserError
from codellama_jax.probes import InfillingKinds
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from codellama_jax.report.results import StageResult
from experiments import generated, recipe

SENTINELS = 16
SOURCE = "programs"
PAPER = {"PSM": "67.6%", "SPM": "72.7%"}
LEAST = 0.2  # of the lines are exact in either order, or the orders cannot be compared
STEPS = 900  # of a half, of 2,304 positions each
STAGES = ("first", "second")  # equal halves, so that the report shows how each order is learned


def experiment(scale: str = "toy") -> Experiment:
    """Returns one arm, trained in both orders as in the paper; probes follow each half."""
    if scale != "toy":
        raise UserError(f"scale is {scale!r}: it must be toy; psm_vs_spm has 7b")
    # The sentinels need entries of the vocabulary in addition to the pieces.
    model = dataclasses.replace(generated.LLAMA, vocab_size=generated.PIECES + SENTINELS)
    chain: dict[str, Stage] = {}
    for name in STAGES:
        stage = generated.stage(
            model,
            {SOURCE: 1.0},
            STEPS,
            init="previous" if chain else "scratch",
            infilling=recipe.INFILLING,
        )
        chain[name] = stage
    return Experiment(
        "exact_lines",
        scale,
        {"both": chain},
        TokenizerConfig(pieces=generated.PIECES),
        CorpusConfig(others={SOURCE: "functions:programs"}, held_out="functions:held_out"),
        probes={"infilling_kinds": InfillingKinds(("single-line",), 128, 32)},
        seeds=5,
    )


def finding(results: Results) -> Finding:
    """Compares the shares of exact lines in both orders at the end of training."""
    exact: dict[str, list[float]] = {}
    rows = []
    lines: dict[str, list[list[tuple[float, float]]]] = {order: [] for order in PAPER}
    for order, paper in PAPER.items():
        for index, name in enumerate(STAGES):
            measures = _by_seed(results, index, order)
            # The verdict is about the last half; the first one is shown beside it.
            exact[order] = measures["exact"]
            cells = [spread(measures[measure], ".1%") for measure in ("exact", "first", "tokens")]
            last = name == STAGES[-1]
            rows.append((order, name, *cells, spread(measures["loss"]), paper if last else ""))
        for chain in results["both"]:
            lines[order].append(_points(chain, order))
    psm, spm = exact["PSM"], exact["SPM"]
    share = "share of held-out lines"
    return Finding(
        question="How many lines of new functions are filled in exactly, in either order?",
        headings=(
            "prompted in",
            "after half",
            "exact",
            "first token",
            "tokens",
            "loss (nats per character)",
            "paper, 7B: exact",
        ),
        rows=rows,
        figures=[
            (
                "Share of held-out lines that are filled in exactly, over the tokens of training.",
                [Panel("tokens of training", f"exact ({share})", lines)],
            )
        ],
        differences=[
            # Both must find lines at all: two shares near 0 would be equal, and prove nothing.
            Difference("exact, PSM", share, psm, bound=LEAST),
            Difference("exact, SPM", share, spm, bound=LEAST),
            Difference("exact, SPM minus PSM", share, pairs(spm, psm)),
        ],
        reason="a PSM middle begins anywhere in training, and at the start of a line only once in"
        " about thirty middles, so that looking up where the prefix ends is learned late.",
        source="table 6",
    )


def _by_seed(results: Results, index: int, order: str) -> dict[str, list[float]]:
    """Returns the means of the measures after a stage, by measure and seed."""
    measures: dict[str, list[float]] = {}
    for chain in results["both"]:
        for measure in ("exact", "first", "tokens", "loss"):
            mean = recipe.mean_of(chain[index], "single-line", order, measure)
            measures.setdefault(measure, []).append(mean)
    return measures


def _points(chain: list[StageResult], order: str) -> list[tuple[float, float]]:
    """Returns (tokens seen, share of exact lines) after every stage of a seed."""
    points, tokens = [], 0.0
    for result in chain:
        # The tokens of each stage count from 0; the figure counts through both halves.
        tokens += result.curve[-1][0]
        points.append((tokens, recipe.mean_of(result, "single-line", order, "exact")))
    return points
