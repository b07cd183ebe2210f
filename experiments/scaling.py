"""The loss by the number of parameters: a power law, fitted to toy models trained on equal tokens.

Claim     Chen et al. 2021 (Codex), section 3.3: after fine-tuning on code the test loss of GPT
          models of 12M to 12B parameters is (N / 5.92e7)^-0.13 in N non-embedding parameters.
Expected  the loss falls as a power of N here too. The exponent may be smaller: all sizes read the
          same number of tokens, of which the larger ones would need more. Within TOLERANCE of the
          published one it counts as equal.
Cost      toy, five seeds: 17 minutes on two AMD EPYC cores in two processes (29 of processor time).
          Published sizes are trained by codex.py.
Command   python launch.py run experiments/scaling.py --scale toy

The published loss is in nats per token of a vocabulary of 50,000 and more entries, and of other
documents. Exponents can be compared and constants cannot: the published line of the figure goes
through the mean loss of the toys.
"""

import dataclasses
import math
from statistics import fmean

import numpy as np

from codellama_jax.config import Experiment, ModelConfig
from codellama_jax.models.accounting import parameter_count
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.sizes import TOY, choose
from codellama_jax.report.findings import Difference, Finding, Panel, Results, spread
from experiments import recipe

EXPONENT = 0.13
TOLERANCE = 0.05
# Width and layers of each size; heads have 32 channels, as the toy's, or are the full width.
SIZES = {"32x2": (32, 2), "48x3": (48, 3), "64x4": (64, 4), "96x4": (96, 4), "128x5": (128, 5)}


def experiment(scale: str = "toy") -> Experiment:
    """Returns an arm for each size: code training from scratch, the same for all."""
    arms = {}
    for arm, (width, layers) in SIZES.items():
        stage = recipe.code(scale, recipe.PLAIN)
        model = _sized(choose(TOY, scale), width, layers)
        arms[arm] = {"code": dataclasses.replace(stage, model=model, init="scratch")}
    return recipe.ablation("scaling", scale, arms)


def _sized(model: LlamaConfig, width: int, layers: int) -> LlamaConfig:
    heads = max(1, width // 32)
    return dataclasses.replace(
        model,
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=width // heads,
        # The ratio of the toy, so that only the size differs between the arms.
        d_ff=width * 11 // 4,
    )


def parameters(model: ModelConfig) -> int:
    """Returns the number of parameters without embedding and output head."""
    # The fit of the paper leaves out the embedding, which does not grow with the layers.
    return parameter_count(model) - 2 * model.vocab_size * model.d_model


def fit(sizes: list[int], losses: list[float]) -> tuple[float, float]:
    """Returns exponent and constant C of the power law (N / C)^-exponent, by least squares in logs.

    Args:
      sizes: parameters N of each model.
      losses: their losses, in nats per token.
    """
    # log L = -a log N + a log C is a straight line; a is the exponent, C the constant.
    slope, intercept = np.polyfit(np.log(sizes), np.log(losses), 1)
    return -float(slope), math.exp(intercept / -slope)


def finding(results: Results) -> Finding:
    """Fits a power law to the final losses of each seed."""
    sizes = [parameters(seeds[0][-1].stage.model) for seeds in results.values()]
    losses = recipe.losses(results)
    # From arm and seed to seed and arm: each seed has a fit over all sizes.
    by_seed = [list(of_seed) for of_seed in zip(*losses.values(), strict=True)]
    fits = [fit(sizes, of_seed) for of_seed in by_seed]
    exponents = [exponent for exponent, _ in fits]
    rows = [(arm, f"{n:,}", spread(losses[arm]), "") for arm, n in zip(results, sizes)]
    constants = spread([constant for _, constant in fits], ".3g")
    rows.append(("exponent of the fit", "", spread(exponents), f"{EXPONENT}"))
    rows.append(("constant of the fit (parameters)", "", constants, "5.92e7"))
    loss = "validation loss (nats per token)"
    panel = Panel("non-embedding parameters", loss, _lines(sizes, by_seed), log_x=10, log_y=True)
    distances = [abs(exponent - EXPONENT) for exponent in exponents]
    return Finding(
        question="How does the loss fall with the number of parameters?",
        source="Codex, section 3.3",
        headings=("model", "non-embedding parameters", loss, "paper"),
        rows=rows,
        figures=[("Final validation loss, its fit, and the published exponent.", [panel])],
        differences=[
            Difference("exponent of the fit", "", exponents),
            Difference(
                "distance of the exponent from the published 0.13",
                "",
                distances,
                "below",
                bound=TOLERANCE,
            ),
        ],
        reason="a million tokens are too few for the larger toys to use their parameters.",
    )


def _lines(
    sizes: list[int], by_seed: list[list[float]]
) -> dict[str, list[list[tuple[float, float]]]]:
    """Returns the lines of the figure: losses by seed, the mean fit, and the published exponent."""
    means = [fmean(of_size) for of_size in zip(*by_seed, strict=True)]
    exponent, constant = fit(sizes, means)
    # The geometric mean is the middle of the logarithmic axis.
    middle = math.exp(fmean(map(math.log, sizes)))
    at_middle = (middle / constant) ** -exponent
    lines = {"measured": [list(zip(map(float, sizes), of_seed)) for of_seed in by_seed]}
    for name, power in ((f"fit: {exponent:.3f}", exponent), (f"paper: {EXPONENT}", EXPONENT)):
        lines[name] = [[(float(n), at_middle * (n / middle) ** -power) for n in sizes]]
    return lines
