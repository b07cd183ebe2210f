"""Infilling in PSM against SPM order, by kind of middle: a line, several lines, a random span.

PSM is prefix-suffix-middle, SPM suffix-prefix-middle.

Claim     Table 14, pass@1 on HumanEval infilling in PSM / SPM order, 7B: 77.0 / 83.3 % for single
          lines, 49.7 / 51.2 for several, 60.7 / 39.6 for random spans. Table 6, exact single lines
          of Python, 7B: 67.6 / 72.7 %.
Expected  SPM ahead on lines; PSM far ahead on random spans, whose prefix ends inside a token that
          SPM has to continue. The paper advises token healing there and has no figure for it; nor
          for models trained in one of the orders only.
Cost      toy, five seeds: 5 minutes in two processes on two cores of an AMD EPYC (AVX-512),
          after scratch_vs_llama2.py, with which it shares the longest of four code stages.
          7B: three times 500B tokens; `launch.py plan psm_vs_spm --scale 7b`.
Command   python launch.py run experiments/psm_vs_spm.py
          python launch.py run experiments/psm_vs_spm.py --scale 7b
          --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

from statistics import fmean
from typing import Literal

from codellama_jax.config import Experiment, InfillingConfig
from codellama_jax.probes import InfillingKinds
from codellama_jax.report.findings import Difference, Finding, Panel, Results, Trend, pairs, spread
from experiments import recipe

KINDS: tuple[Literal["single-line", "multi-line", "random-span"], ...] = (
    "single-line",
    "multi-line",
    "random-span",
)
# "both" is the paper's training; it published no model that was trained in one order only.
ORDERS = {
    "both": recipe.INFILLING,
    "PSM": InfillingConfig(rate=0.9, spm=0.0),
    "SPM": InfillingConfig(rate=0.9, spm=1.0),
}
LONGER = "longer"  # the arm whose training in both orders has the trend
PAPER = {
    ("single-line", "PSM"): "77.0 %; exact 67.6 %",
    ("single-line", "SPM"): "83.3 %; exact 72.7 %",
    ("multi-line", "PSM"): "49.7 %",
    ("multi-line", "SPM"): "51.2 %",
    ("random-span", "PSM"): "60.7 %",
    ("random-span", "SPM"): "39.6 %",
}


# The kinds as places on the x axis.
POSITIONS: dict[str, float] = {kind: x for x, kind in enumerate(KINDS)}
LOSS = "loss (nats per character)"
UNIT = "loss, nats per character"
PROBE = "infilling_kinds"


def experiment(scale: str = "toy") -> Experiment:
    """Returns arms that differ in the orders in which documents are split for infilling.

    One more has the training in both orders for longer, of which the trend is.
    """
    general = recipe.general(scale)
    # The paper's training, longer at toy scale. It is first, so that "both", which equals it at 7B,
    # is read from it, with its checkpoints.
    longer = recipe.trend_code(scale, ORDERS["both"])
    arms = {LONGER: {"general": general, "code": longer}}
    for arm, infilling in ORDERS.items():
        arms[arm] = {"general": general, "code": recipe.code(scale, infilling)}
    # The toy's middles are short: a longer budget would only be spent on wrong ones.
    examples, tokens = (128, 32) if scale in recipe.LOCAL else (1640, 128)
    kinds = InfillingKinds(KINDS, examples, tokens, at_steps=recipe.lengths(longer)[:-1])
    probes = {PROBE: kinds}
    return recipe.ablation("psm_vs_spm", scale, arms, probes)


class Measured:
    """The probe's measures of held-out middles, by arm, kind of middle and prompt order."""

    def __init__(self, results: Results):
        self.answers = {}
        for arm, seeds in results.items():
            self.answers[arm] = [chain[-1].probe(PROBE) for chain in seeds]
        self.longer = [chain[-1] for chain in results[LONGER]]

    def losses_by_length(self, kind: str, order: str) -> list[list[float]]:
        """Returns the loss of the longer arm after each length, by seed."""
        by_seed = []
        for result in self.longer:
            # The probe was run at the checkpoints after these steps as well: see `at_steps`.
            answers = [result.probe(PROBE, step) for step in recipe.lengths(result.stage)]
            by_seed.append([fmean(answer[kind][order]["loss"]) for answer in answers])
        return by_seed

    def means(self, arm: str, kind: str, order: str, measure: str) -> list[float]:
        """Returns the mean of a measure over the examples, by seed."""
        return [fmean(answer[kind][order][measure]) for answer in self.answers[arm]]

    def cases(self) -> list[tuple[str, str, str]]:
        """Returns every arm, kind and order to compare.

        A model that was trained in one order is prompted in that order only.
        """
        cases: list[tuple[str, str, str]] = []
        for arm, (answer, *_) in self.answers.items():
            for kind in KINDS:
                for order in answer[kind]:
                    # "SPM, healed" is SPM with healing: the arm of its order is the part before the
                    # comma.
                    if arm in ("both", LONGER, order.split(",")[0]):
                        cases.append((arm, kind, order))
        return cases

    def lines(self, measure: str) -> dict[str, list[list[tuple[float, float]]]]:
        """Returns a measure over the kinds: a line per arm and order, by seed."""
        lines: dict[str, list[list[tuple[float, float]]]] = {}
        for arm, kind, order in self.cases():
            name, means = f"{order}, trained on {arm}", self.means(arm, kind, order, measure)
            seeds = lines.setdefault(name, [[] for _ in means])
            for points, mean in zip(seeds, means, strict=True):
                points.append((POSITIONS[kind], mean))
        return lines


def finding(results: Results) -> Finding:
    """Compares the losses in the two orders, of the model that was trained longest in both."""
    measured, tokens = Measured(results), recipe.tokens_by_length(results, LONGER)
    rows = []
    for arm, kind, order in measured.cases():
        # "exact" is strict; "right" and the loss also distinguish models that are never exact.
        exact, right, loss = (
            measured.means(arm, kind, order, measure) for measure in ("exact", "right", "loss")
        )
        paper = PAPER.get((kind, order), "") if arm == LONGER else ""
        shares = (spread(exact, ".1%"), spread(right, ".1%"))
        rows.append((arm, kind, order, *shares, spread(loss), paper))
    right_label = "right before the first error (share)"
    panels = [
        Panel("middle", LOSS, measured.lines("loss"), KINDS),
        Panel("middle", right_label, measured.lines("right"), KINDS),
    ]
    return Finding(
        question="Is a middle better filled in after prefix and suffix, or after suffix and"
        " prefix?",
        source="tables 6 and 14",
        headings=(
            "trained on",
            "middle",
            "prompted in",
            "exact",
            "right at first",
            LOSS,
            "paper, 7B: pass@1",
        ),
        rows=rows,
        figures=[
            (
                "Loss of held-out middles, and the share of a middle that is generated before the"
                " first wrong character, by kind of middle.",
                panels,
            )
        ],
        differences=[
            # Each claim is on the sign of a difference: the first order's loss is the higher one.
            _difference(measured, "single-line", "PSM", "SPM"),
            _difference(measured, "multi-line", "PSM", "SPM"),
        ],
        # Trends, because a toy learns PSM late: the verdict is that after the longest training.
        trends=[
            _trend(measured, tokens, "random-span", "SPM", "PSM"),
            _trend(measured, tokens, "random-span", "SPM", "SPM, healed"),
        ],
        reason="a toy learns PSM later than SPM, whose middle continues its prefix as in any text;"
        " the trend shows whether PSM catches up.",
    )


def _difference(measured: Measured, kind: str, higher: str, lower: str) -> Difference:
    """Returns the difference of two orders' losses of which the paper predicts the first higher."""
    first, second = (measured.means(LONGER, kind, order, "loss") for order in (higher, lower))
    return Difference(_statement(kind, higher, lower), UNIT, pairs(first, second))


def _trend(measured: Measured, tokens: list[float], kind: str, higher: str, lower: str) -> Trend:
    """Returns the same difference after each length of training.

    Args:
      measured: the answers of the probe.
      tokens: of each length.
      kind: of the middle.
      higher: the order whose loss the paper predicts to be higher.
      lower: the other order.
    """
    first, second = (measured.losses_by_length(kind, order) for order in (higher, lower))
    values = [pairs(a, b) for a, b in zip(first, second, strict=True)]
    return Trend(_statement(kind, higher, lower), UNIT, tokens, values)


def _statement(kind: str, higher: str, lower: str) -> str:
    return f"{kind}, {higher} minus {lower.replace(', healed', ' with token healing')}"
