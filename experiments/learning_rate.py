"""The learning rate of code training that starts from a general model: that model's own, or a smaller one as in fine-tuning.

Claim     Section 2.2: for 7B it is best to keep Llama 2's rate, 3e-4. The paper prints no table of it.
Expected  the final loss rises as the rate gets smaller.
Cost      toy, five seeds: about 22 minutes on two AMD EPYC cores, probes included.
          7B: three times 500B tokens; `launch.py plan learning_rate --scale 7b`.
Command   python launch.py run experiments/learning_rate.py
          python launch.py run experiments/learning_rate.py --scale 7b --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

import dataclasses

from codellama_jax.config import Experiment
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from experiments import recipe

SHARES = {"same": 1.0, "third": 1 / 3, "tenth": 1 / 10}  # of the general model's rate
PAPER = {"same": "best", "third": "worse", "tenth": "worse"}


def experiment(scale: str = "toy") -> Experiment:
    general, code = recipe.general(scale), recipe.code(scale)
    rates = {
        arm: dataclasses.replace(code.optimizer, peak_lr=code.optimizer.peak_lr * share)
        for arm, share in SHARES.items()
    }
    arms = {
        arm: {"general": general, "code": dataclasses.replace(code, optimizer=rate)}
        for arm, rate in rates.items()
    }
    return recipe.ablation("learning_rate", scale, arms)


def finding(results: Results) -> Finding:
    losses = {arm: [chain[-1].loss for chain in seeds] for arm, seeds in results.items()}
    curves = {arm: [chain[-1].curve for chain in seeds] for arm, seeds in results.items()}
    rates = {arm: seeds[0][-1].stage.optimizer.peak_lr for arm, seeds in results.items()}
    by_rate = {f"{arm} rate": [[(rates[arm], loss)] for loss in losses[arm]] for arm in results}
    caption = "Validation loss over the tokens of code training, and at its end by peak rate."
    panels = [
        Panel(
            "tokens of code training",
            "validation loss (nats per token)",
            {f"{arm} rate": seeds for arm, seeds in curves.items()},
        ),
        Panel("peak learning rate", "final validation loss (nats per token)", by_rate, log_x=10),
    ]
    return Finding(
        question="Should code training keep the general model's learning rate?",
        headings=(
            "peak rate",
            "of the general model's",
            "validation loss (nats per token)",
            "paper, 7B",
        ),
        rows=[(f"{rates[arm]:.2g}", arm, spread(losses[arm]), PAPER[arm]) for arm in results],
        figures=[(caption, panels)],
        differences=[
            Difference(
                f"final loss at a {arm} of the rate minus at the same",
                "nats per token",
                pairs(losses[arm], losses["same"]),
            )
            for arm in ("third", "tenth")
        ],
        reason="the toy's rate was chosen for training from scratch and may be past the best one for a model that goes on.",
    )
