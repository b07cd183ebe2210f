"""The RoPE base of the long-context stage: the five rows of the paper's key-retrieval ablation.

Claim     Table 18, an earlier 7B: after code training on 4,096 tokens no key is found in 8,000, nor
          when only inference takes the base 1e6; a long-context stage with the old base finds some
          at 8,000 and none at 16,000; with linear interpolation (positions divided by 4) or the
          base 1e6 most at 16,000, and with 1e6 some at 24,000, longer than it was trained on.
          Figure 9a: with a larger base attention decays less with distance.
Expected  the same, and the same for perplexity by position: the base 1e6 ahead at four times the
          length of code training, and ahead of interpolation at eight.
Cost      toy, five seeds: about 23 minutes on two AMD EPYC cores, probes included.
          7B: 500B tokens, then three times 6B; `launch.py plan rope_theta --scale 7b`.
Command   python launch.py run experiments/rope_theta.py
          python launch.py run experiments/rope_theta.py --scale 7b
          --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

import dataclasses
import math
from statistics import fmean
from typing import Any

import numpy as np

from codellama_jax.config import Experiment, Stage
from codellama_jax.probes import KeyRetrieval, Perplexity
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from experiments import recipe
from experiments.attention_decay import decay

BASE, LARGER, SCALING = 1e4, 1e6, 4.0
# The paper's 4,000, 8,000, 16,000 and 24,000 tokens, in lengths of code training's sequences.
TIMES = (1, 2, 4, 6)
PAPER = {  # keys found, % at positions 0, 0.2, 0.4 of each length
    "code": "95.3/100/100, 0/0/0, 0/0/0, 0/0",
    "inference_1e6": "95.3/100/100, 0/0/0, 0/0/0, 0/0",
    "long_1e4": "33.6/93.0/97.7, 0/0.8/58.6, 0/0/0, 0/0",
    "long_scaled": "100/100/100, 100/99.2/99.2, 2.3/99.2/100, 0/0",
    "long_1e6": "95.3/95.3/100, 100/95.3/100, 54.7/100/98.4, 3.1/85.9",
}


def experiment(scale: str = "toy") -> Experiment:
    """Returns five arms that differ in RoPE after the same code stage."""
    general, code = recipe.general(scale), recipe.code(scale)
    larger = dataclasses.replace(recipe.model(scale), rope_theta=LARGER)
    # No step is trained: the stage only changes the base with which its probes read.
    theta = dataclasses.replace(code, model=larger, steps=0)
    after: dict[str, dict[str, Stage]] = {
        "code": {},
        "inference_1e6": {"theta": theta},
        "long_1e4": {"long_context": recipe.long_context(scale, theta=BASE)},
        "long_scaled": {"long_context": recipe.long_context(scale, theta=BASE, scaling=SCALING)},
        "long_1e6": {"long_context": recipe.long_context(scale, theta=LARGER)},
    }
    arms = {}
    for arm, last in after.items():
        arms[arm] = {"general": general, "code": code, **last}
    sequence = code.data.seq_len
    lengths = tuple(sequence * times // 2 for times in (1, 2, 4, 8, 16))
    # Fewer prompts than the paper's at toy scale, where every one of five seeds is measured.
    keys = KeyRetrieval(
        lengths=tuple(sequence * times for times in TIMES),
        examples=24 if scale == "toy" else 64,
    )
    probes = {"perplexity": Perplexity(lengths, rows=24), "key_retrieval": keys}
    return recipe.ablation("rope_theta", scale, arms, probes)


class Measured:
    """Results of the probes of each arm, by seed."""

    def __init__(self, results: Results):
        self.sequence = results["code"][0][1].stage.data.seq_len  # tokens, of code training
        self.keys: dict[str, list[Any]] = {}
        self.perplexity: dict[str, list[Any]] = {}
        for arm, seeds in results.items():
            self.keys[arm] = [chain[-1].probe("key_retrieval") for chain in seeds]
            self.perplexity[arm] = [chain[-1].probe("perplexity") for chain in seeds]

    def gain(self, arm: str, times: int) -> list[float]:
        """Returns the gain of the key in prompts of so many sequences, in nats, by seed."""
        return [_at(answer[str(times * self.sequence)], "gain") for answer in self.keys[arm]]

    def loss(self, arm: str, times: int) -> list[float]:
        """Returns the loss of the last quarter of so many sequences, in nats per token, by seed."""
        # The first tokens are within the length of code training, whatever the length.
        length = str(times * self.sequence)
        return [math.log(answer[length]["last_block"]) for answer in self.perplexity[arm]]

    def gain_of(self, times: int) -> str:
        """Returns the heading of `gain`."""
        return f"gain of the key at {times * self.sequence:,} tokens"

    def loss_of(self, times: int) -> str:
        """Returns the heading of `loss`."""
        return f"loss of the last quarter of {times * self.sequence:,} tokens"


def _at(by_position: dict, measure: str) -> float:
    """Returns the mean of a measure over all positions of the key."""
    return fmean(fmean(answers[measure]) for answers in by_position.values())


def _found(answer: dict) -> str:
    """Returns the shares of keys found: by position, separated by slashes, for each length."""
    lengths = []
    for by_position in answer.values():
        shares = [f"{fmean(answers['retrieved']):.0%}" for answers in by_position.values()]
        lengths.append("/".join(shares))
    return ", ".join(lengths)


def finding(results: Results) -> Finding:
    """Compares the five arms: keys found, and perplexity in its place."""
    m = Measured(results)
    # Losses and gains beside the keys: a toy finds none, and would otherwise show no difference.
    lengths = ", ".join(m.keys["code"][0])
    headings = [
        "arm",
        f"keys found, first seed (at 0, 0.2, 0.4 of {lengths} tokens)",
        "paper, 7B: keys found (%)",
        *(f"{m.loss_of(times)} (nats per token)" for times in (4, 8)),
        *(f"{m.gain_of(times)} (nats)" for times in TIMES),
    ]
    rows = []
    for arm in results:
        losses = [spread(m.loss(arm, times)) for times in (4, 8)]
        gains = [spread(m.gain(arm, times), "+.2f") for times in TIMES]
        rows.append((arm, _found(m.keys[arm][0]), PAPER[arm], *losses, *gains))
    return Finding(
        question="Which RoPE base lets a model use longer contexts?",
        source="table 18",
        headings=tuple(headings),
        rows=rows,
        figures=_figures(m),
        differences=_differences(m),
        reason="the toy finds no key even at the length of its training sequences, so that"
        " perplexity is compared in its place; that gains from the larger base at inference alone,"
        " which turns distant positions by angles that training has seen.",
    )


def _figures(m: Measured) -> list[tuple[str, list[Panel]]]:
    by_length: dict[str, list[list[tuple[float, float]]]] = {}
    for arm, seeds in m.perplexity.items():
        by_length[arm] = []
        for answer in seeds:
            points = [(float(n), measured["last_block"]) for n, measured in answer.items()]
            by_length[arm].append(points)
    gains: dict[str, list[list[tuple[float, float]]]] = {}
    for arm, seeds in m.keys.items():
        gains[arm] = []
        for answer in seeds:
            gains[arm].append([(float(n), _at(by, "gain")) for n, by in answer.items()])
    perplexity = Panel(
        "context length (tokens)", "perplexity of the last quarter", by_length, log_x=2, log_y=True
    )
    gain = Panel("length of the prompt (tokens)", "gain of the key (nats)", gains, log_x=2)
    return [
        (
            "Perplexity of the last quarter of the first tokens of the same files; log-probability"
            " of a key at its place over that of another key there, mean of all positions.",
            [perplexity, gain],
        ),
        (
            "Expected attention by distance, exact, for a head of 1,024 as in the paper's figure"
            " 9a.",
            [_decay(8 * m.sequence)],
        ),
    ]


def _differences(m: Measured) -> list[Difference]:
    return [
        Difference(
            f"{m.gain_of(4)}, base 1e6 minus 1e4",
            "nats",
            pairs(m.gain("long_1e6", 4), m.gain("long_1e4", 4)),
        ),
        Difference(
            f"{m.loss_of(4)}, 1e6 at inference only minus 1e4",
            "nats per token",
            pairs(m.loss("inference_1e6", 4), m.loss("code", 4)),
        ),
        Difference(
            f"{m.loss_of(4)}, before minus after with base 1e6",
            "nats per token",
            pairs(m.loss("code", 4), m.loss("long_1e6", 4)),
        ),
        Difference(
            f"{m.loss_of(4)}, base 1e4 minus 1e6",
            "nats per token",
            pairs(m.loss("long_1e4", 4), m.loss("long_1e6", 4)),
        ),
        Difference(
            f"{m.loss_of(8)}, interpolation minus base 1e6",
            "nats per token",
            pairs(m.loss("long_scaled", 8), m.loss("long_1e6", 8)),
        ),
    ]


def _decay(longest: int) -> Panel:
    # The formula needs no trained model: it is exact at any scale.
    distances = np.linspace(0, longest, 129)
    settings = {
        "base 1e4": (BASE, 1.0),
        f"base 1e4, positions / {SCALING:g}": (BASE, SCALING),
        "base 1e6": (LARGER, 1.0),
    }
    lines = {}
    for name, (theta, scaling) in settings.items():
        values = decay(distances, theta, scaling)
        lines[name] = [list(zip(distances.tolist(), values.tolist()))]
    return Panel("distance (tokens)", "expected attention (share of that at 0)", lines)
