"""The cost of infilling training for left-to-right prediction: code training with and without it.

Claim     Table 5: the test loss is 0.407 with infilling and 0.408 without for 7B, 0.373 and 0.372
          for 13B; pass@1 on HumanEval is 33.6 and 33.2 %, 36.2 and 36.8 %, on MBPP 44.2 and
          44.8 %, 48.0 and 48.2 %.
Expected  no cost: the loss of documents read from left to right is the same. The paper's two differ
          by a quarter of a percent; less than one percent counts as none here. The verdict is that
          after all tokens; the trend is over an eighth, a quarter, a half and all of them.
Cost      toy, five seeds: 8 minutes in two processes on two cores of an AMD EPYC (AVX-512),
          after scratch_vs_llama2.py, with which it shares one of two code stages.
          small: about 29 hours of processor time for a seed, estimated from 1.4 s for 1,024
          positions on a busy core with AVX2. No GPU was measured.
          7B: twice 500B tokens; `launch.py plan infilling_cost --scale 7b`.
Command   python launch.py run experiments/infilling_cost.py
          python launch.py run experiments/infilling_cost.py --scale 7b
          --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

from codellama_jax.config import Experiment
from codellama_jax.report.findings import Finding, Panel, Results, Trend, spread
from experiments import recipe

PAPER = {"infilling": "0.407, 33.6 %, 44.2 %", "plain": "0.408, 33.2 %, 44.8 %"}
LARGEST_COST = 0.01  # share of the loss


def experiment(scale: str = "toy") -> Experiment:
    """Returns two arms that differ in the infilling rate of the code stage."""
    # One general model for both arms: it is trained once.
    general = recipe.general(scale)
    arms = {
        "infilling": {"general": general, "code": recipe.trend_code(scale, recipe.INFILLING)},
        "plain": {"general": general, "code": recipe.trend_code(scale, recipe.PLAIN)},
    }
    return recipe.ablation("infilling_cost", scale, arms)


def finding(results: Results) -> Finding:
    """Compares the final validation losses of the two arms."""
    losses = recipe.losses(results)
    # Validation documents are never split for infilling, so that the two losses are comparable.
    by_length = [recipe.losses_by_length(results, arm) for arm in ("infilling", "plain")]
    costs = []
    for infilling, plain in zip(*by_length, strict=True):
        # Relative, since the claim is about a percentage of the loss.
        costs.append([a / b - 1 for a, b in zip(infilling, plain, strict=True)])
    caption = (
        "Validation loss of documents read from left to right, over the tokens of code training."
    )
    loss = "validation loss (nats per token)"
    curves = Panel("tokens of code training", loss, recipe.curves(results))
    # A cost of up to one percent counts as none, as the docstring's "Expected" states.
    cost = Trend(
        "loss with infilling over loss without, minus 1",
        "share of the loss",
        recipe.tokens_by_length(results, "infilling"),
        costs,
        "below",
        bound=LARGEST_COST,
    )
    return Finding(
        question="How much does infilling cost left-to-right prediction?",
        source="table 5",
        headings=("code training", loss, "paper, 7B: test loss, HumanEval, MBPP pass@1"),
        rows=[(arm, spread(losses[arm]), PAPER[arm]) for arm in results],
        figures=[(caption, [curves])],
        # The end of the trend decides the verdict: a difference beside it would be the same number.
        differences=[],
        trends=[cost],
        reason="a tenth of the documents of the code stage is unsplit, and a toy of few parameters"
        " spends some of them on the sentinels.",
    )
