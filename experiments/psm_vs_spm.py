"""Infilling in prefix-suffix-middle against suffix-prefix-middle order, by what is cut out: a line, several lines, a random span.

Claim     Table 14, pass@1 on HumanEval infilling in PSM / SPM order, 7B: 77.0 / 83.3 % for single lines, 49.7 / 51.2 for several,
          60.7 / 39.6 for random spans. Table 6, exact single lines of Python, 7B: 67.6 / 72.7 %.
Expected  SPM ahead on lines; PSM far ahead on random spans, whose prefix ends inside a token that SPM goes on from. The paper advises
          token healing there and has no figure for it; nor for models trained in one of the orders only.
Cost      toy, five seeds: about 25 minutes on two AMD EPYC cores, probes included.
          7B: three times 500B tokens; `launch.py plan psm_vs_spm --scale 7b`.
Command   python launch.py run experiments/psm_vs_spm.py
          python launch.py run experiments/psm_vs_spm.py --scale 7b --general.init run:LLAMA2_RUN (more: code_llama.py)
"""

from statistics import fmean

from codellama_jax.config import Experiment, InfillingConfig
from codellama_jax.probes import InfillingKinds
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from experiments import recipe

KINDS = ("single-line", "multi-line", "random-span")
ORDERS = {
    "both": recipe.INFILLING,
    "PSM": InfillingConfig(rate=0.9, spm=0.0),
    "SPM": InfillingConfig(rate=0.9, spm=1.0),
}
PAPER = {
    ("single-line", "PSM"): "77.0 %; exact 67.6 %",
    ("single-line", "SPM"): "83.3 %; exact 72.7 %",
    ("multi-line", "PSM"): "49.7 %",
    ("multi-line", "SPM"): "51.2 %",
    ("random-span", "PSM"): "60.7 %",
    ("random-span", "SPM"): "39.6 %",
}


def experiment(scale: str = "toy") -> Experiment:
    general = recipe.general(scale)
    arms = {
        arm: {"general": general, "code": recipe.code(scale, infilling)}
        for arm, infilling in ORDERS.items()
    }
    examples, tokens = (128, 32) if scale == "toy" else (1640, 128)
    probes = {"infilling_kinds": InfillingKinds(KINDS, examples, tokens)}
    return recipe.ablation("psm_vs_spm", scale, arms, probes)


def finding(results: Results) -> Finding:
    answers = {
        arm: [chain[-1].probe("infilling_kinds") for chain in seeds]
        for arm, seeds in results.items()
    }
    mean = lambda arm, kind, order, measure: [
        fmean(answer[kind][order][measure]) for answer in answers[arm]
    ]
    orders = {kind: tuple(answers["both"][0][kind]) for kind in KINDS}
    asked = [
        (arm, kind, order)
        for arm in results
        for kind in KINDS
        for order in orders[kind]
        if arm in ("both", order.split(",")[0])
    ]

    def lines(measure: str) -> dict[str, list]:
        points = lambda answer, order: [
            (x, fmean(answer[k][order][measure])) for x, k in enumerate(KINDS) if order in orders[k]
        ]
        drawn = {f"{order}, trained on {arm}": (arm, order) for arm, _, order in asked}
        return {
            name: [points(answer, order) for answer in answers[arm]]
            for name, (arm, order) in drawn.items()
        }

    loss = {
        (kind, order): mean("both", kind, order, "loss") for kind in KINDS for order in orders[kind]
    }
    spans = {order: loss["random-span", order] for order in orders["random-span"]}
    caption = "Loss of held-out middles, and how much of them is generated before the first wrong character, by what was cut out."
    label, unit = "right before the first error (share)", "loss, nats a character"
    return Finding(
        question="Is a middle better filled in after prefix and suffix, or after suffix and prefix?",
        headings=(
            "trained on",
            "cut out",
            "asked in",
            "exact",
            "right at first",
            "loss (nats a character)",
            "paper, 7B: pass@1",
        ),
        rows=[
            (
                *(arm, kind, order),
                *(spread(mean(arm, kind, order, measure), ".1%") for measure in ("exact", "right")),
                spread(mean(arm, kind, order, "loss")),
                PAPER.get((kind, order), "") if arm == "both" else "",
            )
            for arm, kind, order in asked
        ],
        figures=[
            (
                caption,
                [
                    Panel("cut out", "loss (nats a character)", lines("loss"), KINDS),
                    Panel("cut out", label, lines("right"), KINDS),
                ],
            )
        ],
        differences=[
            *(
                Difference(
                    f"{kind}, PSM minus SPM", unit, pairs(loss[kind, "PSM"], loss[kind, "SPM"])
                )
                for kind in KINDS[:2]
            ),
            Difference("random-span, SPM minus PSM", unit, pairs(spans["SPM"], spans["PSM"])),
            Difference(
                "random-span, SPM minus SPM with token healing",
                unit,
                pairs(spans["SPM"], spans["SPM, healed"]),
            ),
        ],
        reason="after a million tokens the toy has learned PSM less well than SPM, whose middle goes on from its prefix as any text does;"
        " after five million (--seeds 1 --code.steps 5000) SPM was ahead on random spans by 0.024 nats a character instead of 0.062.",
    )
