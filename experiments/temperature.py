"""The sampling temperature: the best one for a single answer is not the best one for many.

Claim     Figure 6, 7B to 34B on HumanEval and MBPP, top-p 0.95, at temperatures 0.1, 0.4, 0.6 and
          0.8: the higher, the lower pass@1 and the higher pass@10 and pass@100. The paper prints
          curves only.
Expected  the same. Here an answer passes if it completes the last two tokens of a held-out line
          exactly.
Cost      toy, five seeds: 2 minutes in two processes on two cores of an AMD EPYC (AVX-512),
          after long_context_cost.py, which trains its stages.
          7B: 500B tokens; `launch.py plan temperature --scale 7b`.
Command   python launch.py run experiments/temperature.py
          python launch.py run experiments/temperature.py --scale 7b
          --general.init run:LLAMA2_RUN (more: code_llama.py)
          python launch.py evaluate humaneval --run RUN --data HumanEval.jsonl.gz --out RESULTS
          --samples 200 --temperature 0.8 (the paper's own task)
"""

from codellama_jax.config import Experiment
from codellama_jax.probes import LineEnds
from codellama_jax.report.findings import Difference, Finding, Panel, Results, pairs, spread
from experiments import recipe

TEMPERATURES = (0.1, 0.4, 0.6, 0.8)
KS = (1, 10, 100)  # of pass@k
PAPER = {1: "falls with temperature", 10: "rises", 100: "rises"}


def experiment(scale: str = "toy") -> Experiment:
    """Returns one arm, whose model is sampled at four temperatures by a probe."""
    # One model is enough: only the sampling differs, which the probe varies.
    arms = {"code": {"general": recipe.general(scale), "code": recipe.code(scale)}}
    # pass@100 needs 100 samples; the paper draws 200 for each of HumanEval's 164 tasks.
    lines, samples = (96, 100) if scale in recipe.LOCAL else (164, 200)
    probes = {"line_ends": LineEnds(TEMPERATURES, lines, samples)}
    return recipe.ablation("temperature", scale, arms, probes)


def finding(results: Results) -> Finding:
    """Compares pass@k at the lowest and the highest temperature."""
    answers = [chain[-1].probe("line_ends") for chain in results["code"]]
    rows, curves, differences = [], {}, []
    low, high = TEMPERATURES[0], TEMPERATURES[-1]
    for k in KS:
        shares = {}  # by temperature and seed
        for temperature in TEMPERATURES:
            by_seed = [answer[f"{temperature:g}"] for answer in answers]
            shares[temperature] = [measures[f"pass@{k}"] for measures in by_seed]
        rows.append((f"pass@{k}", *(spread(s, ".1%") for s in shares.values()), PAPER[k]))
        # By seed instead of by temperature: a line of the figure for each seed.
        seeds = zip(*shares.values(), strict=True)
        curves[f"pass@{k}"] = [list(zip(TEMPERATURES, of_seed)) for of_seed in seeds]
        # One answer profits from a low temperature, several from a high one.
        better, worse = (low, high) if k == 1 else (high, low)
        statement = f"pass@{k} at {better} minus at {worse}"
        gains = pairs(shares[better], shares[worse])
        differences.append(Difference(statement, "share of lines", gains))
    caption = "Share of held-out lines of which one of k answers is exact."
    return Finding(
        question="Which temperature is best for one answer, and for many?",
        source="figure 6",
        headings=("", *(f"temperature {t:g}" for t in TEMPERATURES), "paper"),
        rows=rows,
        figures=[(caption, [Panel("temperature", "pass@k", curves)])],
        differences=differences,
        reason="a line has one right end here, where a task of the paper has many right programs.",
    )
