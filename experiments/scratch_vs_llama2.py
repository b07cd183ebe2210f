"""Code training from a general model against code training from scratch: the same documents, the same tokens.

Claim     Figure 5b (section 3.4.1), 7B: trained from scratch on the same 500B tokens, the loss ends where Code Llama's, which started
          from Llama 2, was about half-way: 240B tokens earlier.
Expected  from the general model the final loss is lower, and the one from scratch is reached with tokens to spare.
Cost      toy, five seeds: about 17 minutes on two AMD EPYC cores, probes included.
          7B: twice 500B tokens; `launch.py plan scratch_vs_llama2 --scale 7b`.
Command   python launch.py run experiments/scratch_vs_llama2.py
          python launch.py run experiments/scratch_vs_llama2.py --scale 7b --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

import dataclasses

from codellama_jax.config import Experiment
from codellama_jax.report.findings import (
    Difference,
    Finding,
    Panel,
    Results,
    crossing,
    pairs,
    spread,
)
from experiments import recipe

PAPER = {
    "llama2": "as from scratch after 260B of 500B tokens",
    "scratch": "printed as a curve only",
}


def experiment(scale: str = "toy") -> Experiment:
    general, code = recipe.general(scale), recipe.code(scale)
    arms = {
        "llama2": {"general": general, "code": code},
        "scratch": {
            "untrained": dataclasses.replace(general, init="scratch", steps=0),
            "code": code,
        },
    }
    return recipe.ablation("scratch_vs_llama2", scale, arms)


def finding(results: Results) -> Finding:
    losses = {arm: [chain[-1].loss for chain in seeds] for arm, seeds in results.items()}
    curves = {arm: [chain[-1].curve for chain in seeds] for arm, seeds in results.items()}
    saved = [
        1 - crossing(curve, loss) / curve[-1][0]
        for curve, loss in zip(curves["llama2"], losses["scratch"])
    ]
    after_start = {arm: [curve[1:] for curve in seeds] for arm, seeds in curves.items()}
    caption = "Validation loss over the tokens of code training, after the first steps."
    return Finding(
        question="How many tokens of code training does a general model save?",
        headings=("code training from", "validation loss (nats per token)", "paper, 7B"),
        rows=[
            *((arm, spread(losses[arm]), PAPER[arm]) for arm in results),
            ("tokens saved", spread(saved, ".0%"), "48%"),
        ],
        figures=[
            (
                caption,
                [Panel("tokens of code training", "validation loss (nats per token)", after_start)],
            )
        ],
        differences=[
            Difference(
                "final loss from scratch minus from the general model",
                "nats per token",
                pairs(losses["scratch"], losses["llama2"]),
            ),
            Difference("code tokens saved by the general model", "share of all", saved),
        ],
        reason="the toy's general model saw few tokens, most of them unlike code.",
    )
