"""The cost of the long-context stage at short contexts, with and without infilling training.

Claim     Table 10, pass@1 on HumanEval / MBPP before and after the long-context stage: 32.3 / 46.2
          and 34.1 / 42.6 % for 7B without infilling, 34.1 / 44.6 and 33.5 / 41.4 % with it; over
          all models 0.52 and 1.9 points lower. Figure 4a: longer contexts gain.
Expected  the first tokens of a document, as many as a sequence of code training, are predicted
          worse afterwards, and worse than after as many more tokens in short sequences; at four
          times that length perplexity falls.
Cost      toy, five seeds: 4 minutes in two processes on two cores of an AMD EPYC (AVX-512),
          after scratch_vs_llama2.py, with which it shares the general model.
          7B: twice 500B tokens; `launch.py plan long_context_cost --scale 7b`.
Command   python launch.py run experiments/long_context_cost.py
          python launch.py run experiments/long_context_cost.py --scale 7b
          --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

import dataclasses
import math
from collections.abc import Sequence

from codellama_jax.config import Experiment, Stage
from codellama_jax.probes import Perplexity
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from codellama_jax.report.results import StageResult
from experiments import recipe

PAPER = {
    "plain": "32.3 %, 46.2 %",
    "plain_long": "34.1 %, 42.6 %",
    "infilling": "34.1 %, 44.6 %",
    "infilling_long": "33.5 %, 41.4 %",
    "infilling_short": "",
}


def experiment(scale: str = "toy") -> Experiment:
    """Returns arms before and after the long-context stage, and one with short sequences."""
    general = recipe.general(scale)
    arms = {}
    for name, infilling in (("plain", recipe.PLAIN), ("infilling", recipe.INFILLING)):
        code, long = recipe.code(scale, infilling), recipe.long_context(scale, infilling)
        arms[name] = {"general": general, "code": code}
        arms[f"{name}_long"] = {"general": general, "code": code, "long_context": long}
    # The control: it separates the longer sequences from the further training on as many tokens.
    short = _in_short_sequences(long, code)
    arms["infilling_short"] = {"general": general, "code": code, "as_many_short": short}
    # Half of the code stage's length, that length itself, and twice and four times as much.
    lengths = tuple(code.data.seq_len * times // 2 for times in (1, 2, 4, 8))
    probes = {"perplexity": Perplexity(lengths, rows=64)}
    return recipe.ablation("long_context_cost", scale, arms, probes)


def finding(results: Results) -> Finding:
    """Compares the loss of the first tokens before and after the long-context stage."""
    # Inside the code stage's length, and at the long-context stage's.
    sequence = results["plain"][0][-1].stage.data.seq_len
    short = _losses(results, sequence)
    long = _losses(results, 4 * sequence)
    first_short = f"loss of the first {sequence:,} tokens"
    first_long = f"loss of the first {4 * sequence:,} tokens"
    nats = "nats per token"
    rows = [(arm, spread(short[arm]), spread(long[arm]), PAPER[arm]) for arm in results]
    curves = {}
    for arm, seeds in results.items():
        curves[arm] = [_curve(chain) for chain in seeds]
    panel = Panel("context length (tokens)", "validation perplexity", curves, log_x=2)
    return Finding(
        question="How much does the long-context stage cost at short contexts?",
        source="table 10",
        headings=(
            "arm",
            f"{first_short} ({nats})",
            f"{first_long} ({nats})",
            "paper, 7B: HumanEval, MBPP pass@1",
        ),
        rows=rows,
        figures=[("Perplexity of the first tokens of the same held-out files.", [panel])],
        differences=[
            Difference(
                f"{first_short}, after minus before, plain",
                nats,
                pairs(short["plain_long"], short["plain"]),
            ),
            Difference(
                f"{first_short}, after minus before",
                nats,
                pairs(short["infilling_long"], short["infilling"]),
            ),
            Difference(
                f"{first_short}, long minus short sequences",
                nats,
                pairs(short["infilling_long"], short["infilling_short"]),
            ),
            Difference(
                f"{first_long}, after minus before",
                nats,
                pairs(long["infilling_long"], long["infilling"]),
                "below",
            ),
        ],
        reason="the toy is far from trained out, so that any further tokens help it at every"
        " length.",
    )


def _in_short_sequences(long: Stage, code: Stage) -> Stage:
    """Returns the long-context stage with the code stage's model and length, and as many tokens."""
    # As many tokens per step: shorter sequences, and more of them in proportion.
    batch_size = long.data.batch_size * long.data.seq_len // code.data.seq_len
    data = dataclasses.replace(long.data, seq_len=code.data.seq_len, batch_size=batch_size)
    return dataclasses.replace(long, model=code.model, data=data)


def _curve(chain: Sequence[StageResult]) -> list[tuple[float, float]]:
    """Returns the perplexity of an arm's last model over the context length."""
    by_length = chain[-1].probe("perplexity")
    return [(int(length), measured["perplexity"]) for length, measured in by_length.items()]


def _losses(results: Results, length: int) -> dict[str, list[float]]:
    """Returns the loss of the first `length` tokens of files, by arm and seed."""
    losses: dict[str, list[float]] = {}
    for arm, seeds in results.items():
        losses[arm] = []
        for chain in seeds:
            measured = chain[-1].probe("perplexity")[str(length)]
            # Differences of losses have a unit; those of perplexities would depend on their size.
            losses[arm].append(math.log(measured["perplexity"]))
    return losses
