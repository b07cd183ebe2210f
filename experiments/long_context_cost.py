"""What long rows cost at short ones: the long-context stage after code training, without and with infilling.

Claim     Table 10, pass@1 on HumanEval / MBPP before and after the long-context stage: 32.3 / 46.2 and 34.1 / 42.6 % for 7B without
          infilling, 34.1 / 44.6 and 33.5 / 41.4 % with it; over all models 0.52 and 1.9 points lower. Figure 4a: longer contexts gain.
Expected  the first tokens of a document, as many as a row of code training, are predicted worse afterwards, and worse than after as
          many more tokens in short rows; at four times that length perplexity falls.
Cost      toy, five seeds: about 21 minutes on two AMD EPYC cores, probes included.
          7B: twice 500B tokens; `launch.py plan long_context_cost --scale 7b`.
Command   python launch.py run experiments/long_context_cost.py
          python launch.py run experiments/long_context_cost.py --scale 7b --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

import dataclasses
import math

from codellama_jax.config import Experiment
from codellama_jax.probes import Perplexity
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from experiments import recipe

PAPER = {
    "plain": "32.3 %, 46.2 %",
    "plain_long": "34.1 %, 42.6 %",
    "infilling": "34.1 %, 44.6 %",
    "infilling_long": "33.5 %, 41.4 %",
    "infilling_short": "",
}


def experiment(scale: str = "toy") -> Experiment:
    general = recipe.general(scale)
    arms = {}
    for name, infilling in (("plain", recipe.PLAIN), ("infilling", recipe.INFILLING)):
        code, long = recipe.code(scale, infilling), recipe.long_context(scale, infilling)
        arms[name] = {"general": general, "code": code}
        arms[f"{name}_long"] = {"general": general, "code": code, "long_context": long}
    rows = long.data.batch_size * long.data.seq_len // code.data.seq_len
    short = dataclasses.replace(
        long,
        model=code.model,
        data=dataclasses.replace(long.data, seq_len=code.data.seq_len, batch_size=rows),
    )
    arms["infilling_short"] = {"general": general, "code": code, "as_many_short": short}
    lengths = tuple(code.data.seq_len * times // 2 for times in (1, 2, 4, 8))
    return recipe.ablation(
        "long_context_cost",
        scale,
        arms,
        {"perplexity": Perplexity(lengths, rows=64)},
    )


def finding(results: Results) -> Finding:
    perplexity = lambda chain, length: chain[-1].probe("perplexity")[str(length)]["perplexity"]
    row = results["plain"][0][-1].stage.data.seq_len
    losses = {
        n: {arm: [math.log(perplexity(c, n)) for c in seeds] for arm, seeds in results.items()}
        for n in (row, 4 * row)
    }
    lengths = [int(length) for length in results["plain"][0][-1].probe("perplexity")]
    curves = {
        arm: [[(n, perplexity(chain, n)) for n in lengths] for chain in seeds]
        for arm, seeds in results.items()
    }
    first = lambda n: f"loss of the first {n:,} tokens"
    caption = "Perplexity of the first tokens of the same held-out files."
    short, long = losses.values()
    return Finding(
        question="What does the long-context stage cost at short contexts?",
        headings=(
            "arm",
            *(f"{first(n)} (nats per token)" for n in losses),
            "paper, 7B: HumanEval, MBPP pass@1",
        ),
        rows=[
            (arm, *(spread(by_arm[arm]) for by_arm in losses.values()), PAPER[arm])
            for arm in results
        ],
        figures=[
            (caption, [Panel("context length (tokens)", "validation perplexity", curves, log_x=2)])
        ],
        differences=[
            Difference(
                f"{first(row)}, after minus before, plain",
                "nats per token",
                pairs(short["plain_long"], short["plain"]),
            ),
            Difference(
                f"{first(row)}, after minus before",
                "nats per token",
                pairs(short["infilling_long"], short["infilling"]),
            ),
            Difference(
                f"{first(row)}, long minus short rows",
                "nats per token",
                pairs(short["infilling_long"], short["infilling_short"]),
            ),
            Difference(
                f"{first(4 * row)}, after minus before",
                "nats per token",
                pairs(long["infilling_long"], long["infilling"]),
                "below",
            ),
        ],
        reason="the toy is far from trained out, so that any further tokens help it at every length.",
    )
