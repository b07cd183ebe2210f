"""Code training from a general model against code training from scratch, on the same tokens.

Claim     Figure 5b (section 3.4.1), 7B: trained from scratch on the same 500B tokens, the final
          loss is the one that Code Llama, which started from Llama 2, had about half-way: 240B
          tokens earlier.
Expected  from the general model the final loss is lower, and the one from scratch is reached with
          tokens to spare.
Cost      toy, five seeds: 17 minutes in two processes on two cores of an AMD EPYC (AVX-512).
          7B: twice 500B tokens; `launch.py plan scratch_vs_llama2 --scale 7b`.
Command   python launch.py run experiments/scratch_vs_llama2.py
          python launch.py run experiments/scratch_vs_llama2.py --scale 7b
          --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

import dataclasses

from codellama_jax.config import Experiment
from codellama_jax.report.findings import (
    Difference,
    Finding,
    Panel,
    Results,
    Trend,
    crossing,
    pairs,
    spread,
)
from experiments import recipe

PAPER = {
    "llama2": "after 260B of 500B tokens as low as from scratch after all",
    "scratch": "printed as a curve only",
}


def experiment(scale: str = "toy") -> Experiment:
    """Returns two arms that differ in the weights from which the code stage starts."""
    general, code = recipe.general(scale), recipe.trend_code(scale)
    # An untrained stage keeps the code stage second, so that both arms draw the same batches.
    untrained = dataclasses.replace(general, init="scratch", steps=0)
    arms = {
        "llama2": {"general": general, "code": code},
        "scratch": {"untrained": untrained, "code": code},
    }
    return recipe.ablation("scratch_vs_llama2", scale, arms)


def finding(results: Results) -> Finding:
    """Compares the final losses, and the tokens at which the same loss is reached."""
    losses, curves = recipe.losses(results), recipe.curves(results)
    saved = []
    for curve, final_loss in zip(curves["llama2"], losses["scratch"]):
        # The share of the tokens that is left when the general model has reached the final loss of
        # the one from scratch.
        last_token, _ = curve[-1]
        saved.append(1 - crossing(curve, final_loss) / last_token)
    # The loss of an untrained model would squeeze the rest of the curves together.
    after_start = {}
    for arm, seeds in curves.items():
        after_start[arm] = [curve[1:] for curve in seeds]
    by_length = [recipe.losses_by_length(results, arm) for arm in ("scratch", "llama2")]
    ahead = Trend(
        "loss from scratch minus from the general model",
        "nats per token",
        recipe.tokens_by_length(results, "llama2"),
        [pairs(scratch, llama2) for scratch, llama2 in zip(*by_length, strict=True)],
    )
    rows = [(arm, spread(losses[arm]), PAPER[arm]) for arm in results]
    caption = "Validation loss over the tokens of code training, after the first steps."
    loss = "validation loss (nats per token)"
    return Finding(
        question="How many tokens of code training does a general model save?",
        source="figure 5b",
        headings=("code training from", loss, "paper, 7B"),
        rows=[*rows, ("tokens saved", spread(saved, ".0%"), "48%")],
        figures=[(caption, [Panel("tokens of code training", loss, after_start)])],
        differences=[
            Difference("code tokens saved by the general model", "share of all", saved),
        ],
        trends=[ahead],
        reason="the toy's general model saw few tokens, most of them unlike code.",
    )
