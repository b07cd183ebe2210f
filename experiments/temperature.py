"""The temperature of sampling: the best one for a single answer is not the best one for many.

Claim     Figure 6, 7B to 34B on HumanEval and MBPP, top-p 0.95, at temperatures 0.1, 0.4, 0.6 and 0.8: the higher, the lower pass@1 and the
          higher pass@10 and pass@100. The paper prints curves only.
Expected  so. Here an answer passes that ends a held-out line exactly as it was, its last two tokens.
Cost      toy, five seeds: about 20 minutes on two AMD EPYC cores, probes included.
          7B: 500B tokens; `launch.py plan temperature --scale 7b`.
Command   python launch.py run experiments/temperature.py
          python launch.py run experiments/temperature.py --scale 7b --general.init run:LLAMA2_RUN (more: code_llama.py)
          python -m codellama_jax evaluate humaneval --run RUN --samples 200 --temperature 0.8 (the paper's own task)
"""

from codellama_jax.config import Experiment
from codellama_jax.probes import LineEnds
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from experiments import recipe

TEMPERATURES = (0.1, 0.4, 0.6, 0.8)
KS = (1, 10, 100)
PAPER = {1: "falls with temperature", 10: "rises", 100: "rises"}


def experiment(scale: str = "toy") -> Experiment:
    arms = {"code": {"general": recipe.general(scale), "code": recipe.code(scale)}}
    lines, samples = (96, 100) if scale == "toy" else (164, 200)
    probes = {"line_ends": LineEnds(TEMPERATURES, lines, samples)}
    return recipe.ablation("temperature", scale, arms, probes)


def finding(results: Results) -> Finding:
    answers = [chain[-1].probe("line_ends") for chain in results["code"]]
    passed = {
        k: {t: [answer[f"{t:g}"][f"pass@{k}"] for answer in answers] for t in TEMPERATURES}
        for k in KS
    }
    curves = {
        f"pass@{k}": [
            [(t, passed[k][t][seed]) for t in TEMPERATURES] for seed in range(len(answers))
        ]
        for k in KS
    }
    low, high = TEMPERATURES[0], TEMPERATURES[-1]
    return Finding(
        question="Which temperature is best for one answer, and for many?",
        headings=("", *(f"temperature {t:g}" for t in TEMPERATURES), "paper"),
        rows=[
            (f"pass@{k}", *(spread(passed[k][t], ".1%") for t in TEMPERATURES), PAPER[k])
            for k in KS
        ],
        figures=[
            (
                "Share of held-out lines of which one of k answers is exact.",
                [Panel("temperature", "pass@k", curves)],
            )
        ],
        differences=[
            Difference(
                f"pass@1 at {low} minus at {high}",
                "share of lines",
                pairs(passed[1][low], passed[1][high]),
            ),
            *(
                Difference(
                    f"pass@{k} at {high} minus at {low}",
                    "share of lines",
                    pairs(passed[k][high], passed[k][low]),
                )
                for k in KS[1:]
            ),
        ],
        reason="a line has one right end here, where a task of the paper has many right programs.",
    )
