"""The RoPE base of the long-context stage: the five rows of the paper's key-retrieval ablation.

Claim     Table 18, an earlier 7B: after code training on 4,096 tokens no key is found in 8,000, nor
          when only inference takes the base 1e6; a long-context stage with the old base finds some
          at 8,000 and none at 16,000; with linear interpolation (positions divided by 4) or the
          base 1e6 most at 16,000, and with 1e6 some at 24,000, longer than it was trained on.
          Figure 9a: with a larger base attention decays less with distance.
Expected  the same: for each row, keys are found (more than half of them, all positions together) at
          the lengths at which the paper's are, and not at the others. The same for perplexity by
          position: the base 1e6 ahead at four times the length of code training, and ahead of
          interpolation at eight.
Cost      toy, five seeds: 28 minutes in two processes on two cores of an AMD EPYC (AVX-512);
          47 minutes of training and validation, the rest are probes. small: see infilling_cost.py,
          and a general model that is not shared with the other ablations.
          7B: 500B tokens, then three times 6B; `launch.py plan rope_theta --scale 7b`.
Command   python launch.py run experiments/rope_theta.py
          python launch.py run experiments/rope_theta.py --scale 7b
          --general.init run:LLAMA2_RUN (more: code_llama.py)

Ordinary code teaches a toy no retrieval in a few million tokens. At toy and small scale a share of
each stage, KEYS, is therefore generated documents of the paper's own kind: functions that return a
number, and asserts about them (data/generated_keys.py). Retrieval is learned first from short ones:
the general model reads documents of little filler, code training ones of up to one of its sequences
(256 tokens), the long-context stage these and others of up to 1,024 tokens. With long ones from the
start a toy found no key after as many steps; with only long ones in the long-context stage it did
not learn again, after interpolation, to copy the digits of a number in order. No stage splits
documents for infilling, which would separate a function from its assert.
"""

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, cast

import numpy as np

from codellama_jax.config import Experiment, Stage
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.probes import KeyRetrieval, Perplexity
from codellama_jax.report.findings import (
    Difference,
    Finding,
    HeatMap,
    Panel,
    Results,
    pairs,
    spread,
)
from experiments import recipe
from experiments.attention_decay import decay

BASE, LARGER, SCALING = 1e4, 1e6, 4.0
# The paper's 4,000, 8,000, 16,000 and 24,000 tokens, in lengths of code training's sequences; the
# last length is the probe's only.
TIMES = (1, 2, 4, 6, 8)
POSITIONS = (0.0, 0.2, 0.4)  # of the key, as a share of the prompt
# Table 18: keys found, % at these positions, by TIMES; at 24,000 tokens only two are printed.
PAPER: dict[str, tuple[tuple[float, ...], ...]] = {
    "code": ((95.3, 100, 100), (0, 0, 0), (0, 0, 0), (0, 0)),
    "inference_1e6": ((95.3, 100, 100), (0, 0, 0), (0, 0, 0), (0, 0)),
    "long_1e4": ((33.6, 93.0, 97.7), (0, 0.8, 58.6), (0, 0, 0), (0, 0)),
    "long_scaled": ((100, 100, 100), (100, 99.2, 99.2), (2.3, 99.2, 100), (0, 0)),
    "long_1e6": ((95.3, 95.3, 100), (100, 95.3, 100), (54.7, 100, 98.4), (3.1, 85.9)),
}
FOUND = 0.5  # share of the keys above which a length counts as found
UNCLEAR = 0.1  # a length whose share in the paper is nearer to FOUND is not compared
# Shares of generated documents with keys in the local stages. The others share the rest.
KEYS = {
    "general": {"short_keys": 0.5},
    "code": {"keys": 0.5},
    "long_context": {"keys": 0.25, "long_keys": 0.25},
}
# At toy scale. Smaller models, and this one with four heads or without the long warm-up of the
# general model, learned retrieval in some of the seeds only, with more layers, steps or other rates
# too: in the others they copied the digits of a number in any order.
SHAPE: dict[str, Any] = {"d_model": 128, "n_heads": 8, "n_kv_heads": 8, "d_ff": 352}
STEPS = {"general": 2000, "code": 1500, "long_context": 170}
RATE = 2e-3  # peak learning rate
WARMUP = 300  # steps of the general model
# Where the documents come from.
SOURCES = {source: f"functions:{source}" for source in ("short_keys", "keys", "long_keys")}


def experiment(scale: str = "toy") -> Experiment:
    """Returns five arms that differ in RoPE after the same code stage."""
    general = _with_keys(scale, recipe.general(scale), "general")
    code = _with_keys(scale, recipe.code(scale), "code")
    larger = dataclasses.replace(cast(LlamaConfig, code.model), rope_theta=LARGER)
    # No step is trained: the stage only changes the base with which its probes read.
    theta = dataclasses.replace(code, model=larger, steps=0)
    settings = {"long_1e4": (BASE, 1.0), "long_scaled": (BASE, SCALING), "long_1e6": (LARGER, 1.0)}
    after: dict[str, dict[str, Stage]] = {"code": {}, "inference_1e6": {"theta": theta}}
    for arm, (base, scaling) in settings.items():
        longer = recipe.long_context(scale, theta=base, scaling=scaling)
        after[arm] = {"long_context": _with_keys(scale, longer, "long_context")}
    arms = {}
    for arm, last in after.items():
        arms[arm] = {"general": general, "code": code, **last}
    sequence = code.data.seq_len
    lengths = tuple(sequence * times // 2 for times in (1, 2, 4, 8, 16))
    # Fewer prompts than the paper's at toy scale, where every one of five seeds is measured.
    keys = KeyRetrieval(
        lengths=tuple(sequence * times for times in TIMES),
        positions=POSITIONS,
        examples=8 if scale in recipe.LOCAL else 64,
    )
    probes = {"perplexity": Perplexity(lengths, rows=24), "key_retrieval": keys}
    sources = SOURCES if scale in recipe.LOCAL else {}
    return recipe.ablation("rope_theta", scale, arms, probes, sources)


def _with_keys(scale: str, stage: Stage, name: str) -> Stage:
    """Returns a local stage that also reads documents with keys, and splits none for infilling.

    At toy scale it has the width, rate and steps of this experiment.
    """
    if scale not in recipe.LOCAL:
        return stage
    rest = 1 - sum(KEYS[name].values())
    shares = {source: share * rest for source, share in stage.data.mixture.shares().items()}
    mixture = dataclasses.replace(
        stage.data.mixture,
        code=shares["code"],
        discussions=shares["discussions"],
        language=shares["language"],
        others=KEYS[name],
    )
    data = dataclasses.replace(stage.data, mixture=mixture, infilling=recipe.PLAIN)
    stage = dataclasses.replace(stage, data=data)
    if scale != "toy":
        return stage
    optimizer = dataclasses.replace(stage.optimizer, peak_lr=RATE)
    if name == "general":
        # Retrieval emerges late and suddenly: a rate that has decayed by then delays it.
        optimizer = dataclasses.replace(optimizer, warmup_steps=WARMUP, final_fraction=1.0)
    return dataclasses.replace(
        stage,
        model=dataclasses.replace(cast(LlamaConfig, stage.model), **SHAPE),
        optimizer=optimizer,
        steps=STEPS[name],
        eval_every=min(STEPS[name], 500),
        checkpoint_every=min(STEPS[name], 500),
    )


class Measured:
    """Results of the probes of each arm, by seed."""

    def __init__(self, results: Results):
        self.sequence = results["code"][0][1].stage.data.seq_len  # tokens, of code training
        self.keys: dict[str, list[Any]] = {}
        self.perplexity: dict[str, list[Any]] = {}
        for arm, seeds in results.items():
            self.keys[arm] = [chain[-1].probe("key_retrieval") for chain in seeds]
            self.perplexity[arm] = [chain[-1].probe("perplexity") for chain in seeds]

    def length(self, times: int) -> str:
        """Returns the key of an answer for prompts of so many sequences of code training."""
        return str(times * self.sequence)

    def share_found(self, arm: str, times: int) -> list[float]:
        """Returns the share of keys found in prompts of so many sequences, by seed."""
        return [_at(answer[self.length(times)], "retrieved") for answer in self.keys[arm]]

    def found_at(self, arm: str, times: int, position: float) -> float:
        """Returns the share of keys found at a position, of all seeds together."""
        cells = [answer[self.length(times)][f"{position:g}"] for answer in self.keys[arm]]
        return fmean(fmean(cell["retrieved"]) for cell in cells)

    def margin(self, arm: str) -> list[float]:
        """Returns by how much every length of a row is found, or not, as in the paper, by seed.

        It is the smallest distance from FOUND of a length, and negative on the wrong side.
        """
        by_length = []
        for times, shares in zip(TIMES, PAPER[arm]):
            # Positive if the paper's model finds most keys of this length.
            paper = fmean(shares) / 100 - FOUND
            if abs(paper) >= UNCLEAR:
                sign = math.copysign(1, paper)
                by_length.append([sign * (share - FOUND) for share in self.share_found(arm, times)])
        # One length on the wrong side makes the row of the seed disagree.
        return [min(of_seed) for of_seed in zip(*by_length, strict=True)]

    def loss(self, arm: str, times: int) -> list[float]:
        """Returns the loss of the last quarter of so many sequences, in nats per token, by seed."""
        # The first tokens are within the length of code training, whatever the length.
        length = str(times * self.sequence)
        return [math.log(answer[length]["last_block"]) for answer in self.perplexity[arm]]

    def loss_of(self, times: int) -> str:
        """Returns the heading of `loss`."""
        return f"loss of the last quarter of {times * self.sequence:,} tokens"


def _at(by_position: dict, measure: str) -> float:
    """Returns the mean of a measure over all positions of the key."""
    return fmean(fmean(answers[measure]) for answers in by_position.values())


def _paper(shares: Sequence[float]) -> str:
    """Returns the cell of a length in the paper: percentages by position."""
    return "/".join(f"{share:g}" for share in shares)


def finding(results: Results) -> Finding:
    """Compares the five rows of the table: keys found by length and position, and perplexity."""
    m = Measured(results)
    headings = ["arm"]
    for times in TIMES:
        headings.append(
            f"keys found at {times * m.sequence:,} tokens by position: %; seeds with more than"
            f" {100 * FOUND:g} %; paper: %"
        )
    headings += [f"{m.loss_of(times)} (nats per token)" for times in (4, 8)]
    rows = []
    for arm in results:
        row = [arm]
        for number, times in enumerate(TIMES):
            cell = "/".join(f"{100 * m.found_at(arm, times, p):.0f}" for p in POSITIONS)
            of_seeds = m.share_found(arm, times)
            cell += f"; {sum(share > FOUND for share in of_seeds)} of {len(of_seeds)}"
            if number < len(PAPER[arm]):
                cell += f"; {_paper(PAPER[arm][number])}"
            row.append(cell)
        rows.append((*row, *(spread(m.loss(arm, times)) for times in (4, 8))))
    return Finding(
        question="Which RoPE base lets a model use longer contexts?",
        source="table 18",
        headings=tuple(headings),
        rows=rows,
        figures=_figures(m),
        heat_maps=[_heat_map(m)],
        differences=_differences(m),
        reason=_reason(m),
    )


def _reason(m: Measured) -> str:
    """Returns why the toy may differ from the paper, with the seeds that learned no retrieval."""
    within = m.share_found("code", 1)
    failed = sum(share <= FOUND for share in within)
    reason = (
        "the toy's long-context stage has a quarter of the tokens of all stages before it, the"
        " paper's about a hundredth, so that the old base learns longer distances too; perplexity"
        " gains from the larger base at inference alone, which turns distant positions by angles"
        " that training has seen."
    )
    if not failed:
        return reason
    return (
        f"{failed} of {len(within)} seeds find {100 * FOUND:g} % of the keys or fewer within"
        " one sequence of code training, because they have not learned to copy the digits of a"
        f" number in order, and make every interval wide; {reason}"
    )


def _heat_map(m: Measured) -> tuple[str, HeatMap]:
    rows, shares = [], []
    for arm in m.keys:
        for position in POSITIONS:
            # A row per arm and position of the key, as in the paper's table.
            rows.append(f"{arm}, key at {position:g}")
            shares.append([m.found_at(arm, times, position) for times in TIMES])
    columns = [f"{times * m.sequence:,}" for times in TIMES]
    caption = "Share of the keys found, all seeds, by arm, position and length of the prompt."
    label = "length of the prompt (tokens)"
    return caption, HeatMap(label, "arm and position of the key", columns, rows, shares)


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
    rows = []
    for arm in PAPER:
        name = f"row {arm}: least margin by which a length is found, or not, as in the paper"
        rows.append(Difference(name, "share of the keys", m.margin(arm)))
    return [
        *rows,
        Difference(
            f"keys found at {6 * m.sequence:,} tokens, base 1e6 minus interpolation",
            "share",
            pairs(m.share_found("long_1e6", 6), m.share_found("long_scaled", 6)),
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
