"""The learning rate of code training: that of the general model, or a smaller one.

Claim     Section 2.2: for 7B it is best to keep Llama 2's rate, 3e-4, instead of a smaller one as
          in fine-tuning. The paper prints no table of it.
Expected  the final loss rises as the rate gets smaller.
Cost      toy, five seeds: 3 minutes in two processes on two cores of an AMD EPYC (AVX-512),
          after long_context_cost.py, with which it shares one of three code stages.
          7B: three times 500B tokens; `launch.py plan learning_rate --scale 7b`.
Command   python launch.py run experiments/learning_rate.py
          python launch.py run experiments/learning_rate.py --scale 7b
          --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

import dataclasses

from codellama_jax.config import Experiment
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from experiments import recipe

SHARES = {"same": 1.0, "third": 1 / 3, "tenth": 1 / 10}  # of the general model's rate
PAPER = {"same": "best", "third": "worse", "tenth": "worse"}


def experiment(scale: str = "toy") -> Experiment:
    """Returns three arms that differ in the peak learning rate of the code stage."""
    # One general model for all arms: it is trained once.
    general, code = recipe.general(scale), recipe.code(scale)
    # Warm-up and decay stay: only the peak is scaled.
    arms = {}
    for arm, share in SHARES.items():
        peak = code.optimizer.peak_lr * share
        optimizer = dataclasses.replace(code.optimizer, peak_lr=peak)
        arms[arm] = {"general": general, "code": dataclasses.replace(code, optimizer=optimizer)}
    return recipe.ablation("learning_rate", scale, arms)


def finding(results: Results) -> Finding:
    """Compares the final validation loss of each smaller rate with that of the same rate."""
    losses, curves = recipe.losses(results), recipe.curves(results)
    rates = {arm: seeds[0][-1].stage.optimizer.peak_lr for arm, seeds in results.items()}
    # Each rate is one point per seed in the second panel.
    by_tokens, by_rate, rows = {}, {}, []
    for arm, rate in rates.items():
        by_tokens[f"{arm} rate"] = curves[arm]
        by_rate[f"{arm} rate"] = [[(rate, loss)] for loss in losses[arm]]
        rows.append((f"{rate:.2g}", arm, spread(losses[arm]), PAPER[arm]))
    differences = []
    for arm in ("third", "tenth"):
        statement = f"final loss at a {arm} of the rate minus at the same"
        # Positive if the smaller rate is worse, as the paper reports.
        larger = pairs(losses[arm], losses["same"])
        differences.append(Difference(statement, "nats per token", larger))
    caption = "Validation loss over the tokens of code training, and at its end by peak rate."
    loss = "validation loss (nats per token)"
    return Finding(
        question="Should code training keep the general model's learning rate?",
        source="section 2.2",
        headings=("peak rate", "of the general model's", loss, "paper, 7B"),
        rows=rows,
        figures=[
            (
                caption,
                [
                    Panel("tokens of code training", loss, by_tokens),
                    Panel("peak learning rate", f"final {loss}", by_rate, log_x=10),
                ],
            )
        ],
        differences=differences,
        reason="the toy's rate was chosen for training from scratch and may be past the best one"
        " for a model that continues.",
    )
