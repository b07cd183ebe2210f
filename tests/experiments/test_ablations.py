"""Findings follow the measurements: a paper's worth of numbers agrees, the reverse disagrees."""

import inspect
import math
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from codellama_jax import cli
from codellama_jax.report.findings import Finding
from codellama_jax.report.results import StageResult
from codellama_jax.runs.commands import PlanOptions, load_experiment
from codellama_jax.runs.experiment_file import claim_of, experiment_names, load_file
from codellama_jax.tokenizers.files import RUN_FILES
from experiments import recipe

SEEDS = 3


def no_probes(arm: str, seed: float) -> dict:
    return {}


def finding_of(name: str, answer, losses=lambda arm, seed: (9.0, 8.0)) -> Finding:
    """Returns the finding of an experiment whose last stages measured this.

    `answer(arm, seed)` returns the probes, `losses(arm, seed)` the validation losses.
    """
    experiment, module = load_experiment(PlanOptions(name, "toy"))
    results = {}
    for arm, chain in experiment.arms.items():
        results[arm] = []
        for seed in range(1, SEEDS + 1):
            measured = losses(arm, seed / 100)
            stages = []
            for stage, config in chain.items():
                every = config.steps // max(1, len(measured) - 1)
                curve = [
                    {"step": number * every, "tokens": 1000 * number, "validation_loss": loss}
                    for number, loss in enumerate(measured)
                ]
                stages.append(StageResult(stage, config, [], curve, answer(arm, seed / 100)))
            results[arm].append(stages)
    return module.finding(results)


LENGTHS = (800, 1600, 3200)  # steps of the code stage at which a trend has a checkpoint


def infilling(ahead: float):
    """Returns losses of which SPM is `ahead` on lines and behind on spans."""

    def measures(loss: float) -> dict:
        return {"exact": [0.0, 1.0], "right": [0.5, 0.7], "loss": [loss, loss]}

    def answer(arm: str, seed: float) -> dict:
        worse, better = measures(1.0 + (1 + seed) * ahead), measures(1.0)
        kinds = {
            "single-line": {"PSM": worse, "SPM": better},
            "multi-line": {"PSM": worse, "SPM": better},
            "random-span": {"PSM": better, "SPM": worse, "SPM, healed": better},
        }
        return dict.fromkeys(("infilling_kinds", *(f"infilling_kinds@{n}" for n in LENGTHS)), kinds)

    return answer


BEST = {"long_1e6": 0.0, "long_scaled": 0.2, "long_1e4": 0.4, "code": 0.6, "inference_1e6": 0.8}


def positions(ahead: float):
    """Returns keys found as in table 18 or nowhere as there; perplexities as in BEST."""
    paper = load_file("rope_theta").PAPER

    def found(arm: str, number: int) -> float:
        # The length that the paper does not have is found by none.
        shares = paper[arm][number] if number < len(paper[arm]) else (0.0,)
        return sum(shares) / len(shares) / 100

    def answer(arm: str, seed: float) -> dict:
        worse = ahead * BEST[arm] * (1 + seed)
        keys = {}
        for number, length in enumerate((256, 512, 1024, 1536, 2048)):
            share = found(arm, number) if ahead > 0 else 1 - found(arm, number)
            of = {"retrieved": [share], "gain": [5 - worse]}
            keys[str(length)] = {"0": of, "0.2": of, "0.4": of}
        by_length = {
            str(n): {"last_block": 30 + worse, "perplexity": 30}
            for n in (128, 256, 512, 1024, 2048)
        }
        return {"key_retrieval": keys, "perplexity": by_length}

    return answer


def passes(ahead: float):
    """Returns pass@k that falls with temperature for one answer and rises for several."""

    def answer(arm: str, seed: float) -> dict:
        by_temperature = {}
        for t in (0.1, 0.4, 0.6, 0.8):
            by_temperature[f"{t:g}"] = {
                "pass@1": 0.4 - t * ahead * (0.1 + seed),
                "pass@10": 0.5 + t * ahead * (0.1 + seed),
                "pass@100": 0.5 + t * ahead * 0.2,
            }
        return {"line_ends": by_temperature}

    return answer


def context(ahead: float):
    """Returns perplexities that the long-context stage raises at 256 tokens, lowers at 1,024."""

    def answer(arm: str, seed: float) -> dict:
        change = ahead * (0.1 + seed) if arm.endswith("_long") else 0.0
        losses = {128: 3.0 + change, 256: 3.0 + change, 512: 3.0, 1024: 3.0 - change}
        return {"perplexity": {str(n): {"perplexity": math.exp(x)} for n, x in losses.items()}}

    return answer


def functions(ahead: float):
    """Returns pass@1 of held-out functions, the better the more data; worse without L_rank."""
    order = ("without", "with", "base", "instruct", "rrtf_18k", "sft_68k", "rrtf_68k")

    def answer(arm: str, seed: float) -> dict:
        place = order.index(arm) + 1 if arm in order else 0
        return {"held_out_functions": {"pass@1": 0.5 + ahead * place * (0.01 + seed / 100)}}

    return answer


def mixed(answers):
    """Returns answers that agree for the first seed, and the more disagree for the others."""

    def answer(arm: str, seed: float) -> dict:
        ahead = 1.0 if seed < 0.015 else -0.4
        return answers(ahead)(arm, seed)

    return answer


def check(agrees: Finding, disagrees: Finding, undecided: Finding) -> None:
    assert {d.verdict for d in agrees.decisive} == {"agrees"}
    assert {d.verdict for d in disagrees.decisive} == {"disagrees"}
    assert {d.verdict for d in undecided.decisive} == {"undecided"}
    for finding in (agrees, disagrees, undecided):
        assert all(len(row) == len(finding.headings) for row in finding.rows)
        assert all(panel.lines for _, panels in finding.figures for panel in panels)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("psm_vs_spm", infilling),
        ("rope_theta", positions),
        ("temperature", passes),
        ("long_context_cost", context),
        ("self_instruct", functions),
        ("code_llama_instruct", functions),
    ],
)
def test_verdicts_follow_the_answers_of_probes(name, answer):
    agrees, disagrees = finding_of(name, answer(1.0)), finding_of(name, answer(-1.0))
    check(agrees, disagrees, finding_of(name, mixed(answer)))


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("infilling_cost", {"infilling": 4.0, "plain": 4.0}, {"infilling": 4.1, "plain": 4.0}),
        (
            "learning_rate",
            {"same": 4.0, "third": 4.4, "tenth": 4.8},
            {"same": 4.8, "third": 4.4, "tenth": 4.0},
        ),
    ],
)
def test_verdicts_follow_the_losses(name, right, wrong):
    def measured(*by_seed: dict[str, float]) -> Finding:
        def losses(arm: str, seed: float) -> tuple[float, float]:
            last = by_seed[round(100 * seed) % len(by_seed)][arm]
            return 9.0, last * (1 + seed)

        return finding_of(name, no_probes, losses)

    check(measured(right), measured(wrong), measured(right, wrong))


def test_ranked_answers_are_compared_with_the_student_by_size_and_with_fine_tuning():
    def measured(better: float) -> Finding:
        experiment, module = load_experiment(PlanOptions("pangu_coder2", "toy"))
        values = {"rrtf_18k": 0.3, "rrtf_38k": 0.4, "rrtf_68k": 0.4 + better, "sft_68k": 0.4}
        results = {}
        for arm, chain in experiment.arms.items():
            results[arm] = []
            for seed in range(SEEDS):
                shares = (0.6, 0.2, values.get(arm, 0.4) + seed / 1000 * (arm == "rrtf_68k"))
                answers = ({"held_out_functions": {"pass@1": share}} for share in shares)
                stages = [
                    StageResult(name, stage, [], [], answer)
                    for (name, stage), answer in zip(chain.items(), answers)
                ]
                results[arm].append(stages)
        return module.finding(results)

    right, wrong = measured(0.1), measured(-0.3)
    assert [d.verdict for d in right.differences] == ["agrees"] * 3
    assert [d.verdict for d in wrong.differences] == ["disagrees"] * 3
    assert [row[1].split()[0] for row in right.rows[:2]] == ["20.0%", "60.0%"]


@pytest.mark.parametrize("scale", ["toy", "small", "7b"])
def test_every_length_of_a_trend_is_a_checkpoint_that_is_kept(scale):
    stage = recipe.trend_code(scale)
    saved = {*range(stage.checkpoint_every, stage.steps, stage.checkpoint_every), stage.steps}
    kept = sorted(saved)[-stage.keep_checkpoints :]
    assert set(recipe.lengths(stage)) <= set(kept)


def test_a_trend_follows_the_lengths_of_one_run():
    """The gap halves with every doubling, and ends below the bound of one percent."""
    experiment, _ = load_experiment(PlanOptions("infilling_cost", "toy"))
    code = experiment.arms["infilling"]["code"]
    assert recipe.lengths(code) == (*LENGTHS, code.steps)
    assert code.keep_checkpoints * code.checkpoint_every == code.steps

    def losses(arm: str, seed: float) -> list[float]:
        gaps = [0.0, 0.32, 0.16, 0, 0.08, 0, 0, 0, 0.04 + seed / 10]
        return [5.0 * (1 + gap * (arm == "infilling") / 8) for gap in gaps]

    finding = finding_of("infilling_cost", no_probes, losses)
    (trend,) = finding.trends
    assert list(trend.tokens) == [1000, 2000, 4000, 8000]
    assert [round(100 * value, 3) for value in trend.values[0][:3]] == [4, 2, 1]
    assert (finding.verdict, trend.direction) == ("agrees", "towards the paper")


def test_a_row_of_the_key_table_needs_every_length_to_be_as_in_the_paper():
    def answers(arm: str, seed: float) -> dict:
        answer = positions(1.0)(arm, seed)
        if arm == "long_1e6":  # at four times the sequence it finds a third of the keys only
            for cell in answer["key_retrieval"]["1024"].values():
                cell["retrieved"] = [0.3 + seed]
        return answer

    finding = finding_of("rope_theta", answers)
    rows = {d.name.split(":")[0]: d for d in finding.differences if d.name.startswith("row ")}
    assert [d.verdict for d in rows.values()] == ["agrees"] * 4 + ["disagrees"]
    assert rows["row long_1e6"].values[0] == pytest.approx(0.31 - 0.5)
    # At six times the paper's share is 44.5 %, which is neither found nor not found.
    assert finding.rows[4][3] == "32/32/32; 0 of 3; 54.7/100/98.4"
    assert "; 3 of 3; " in finding.rows[4][2]
    ((_, heat_map),) = finding.heat_maps
    assert heat_map.rows[-1] == "long_1e6, key at 0.4" and len(heat_map.rows) == 15
    assert heat_map.shares[-1][2] == pytest.approx(0.32)


def test_tokens_saved_are_counted_where_the_curve_reaches_the_final_loss_from_scratch():
    def losses(arm: str, seed: float) -> tuple[float, ...]:
        ahead = 1.0 + seed if arm == "llama2" else 0.0
        return (9.0, 6.0 - ahead, 5.0 - ahead, 4.0 - ahead)

    finding = finding_of("scratch_vs_llama2", no_probes, losses)
    assert finding.verdict == "agrees"
    # From 5 - 1.02 a thousand tokens before the end: 4.0 was reached at 1.98 of 3 thousand.
    assert finding.differences[0].values[1] == pytest.approx(1 - 1.98 / 3)


@pytest.mark.parametrize("name", experiment_names())
def test_an_experiment_states_claim_expectation_cost_and_a_command_that_parses(name):
    text = claim_of(load_file(name))
    labels = re.findall(r"^([A-Z]\w*) {2,}", text, re.M)
    assert labels == ["Claim", "Expected", "Cost", "Command"]
    commands = re.split(
        r"\n +(?=python|make)", text.partition("\nCommand ")[2].partition("\n\n")[0]
    )
    for command in commands:
        command = command.replace("gs://", "/")  # without the package for object stores
        words = shlex.split(re.sub(r"\(.*\)", "", command))
        if words[0] == "make":
            assert words == ["make", "quickstart"]
            continue
        assert words[:2] == ["python", "launch.py"]
        if words[2] == "run":
            assert words[3] == f"experiments/{name}.py"
        assert callable(cli.parse(words[2:], "launch.py"))
        path = dict(pairwise(words)).get("--tokenizer.path", "")
        # A run or an import writes it under this name.
        assert not path.startswith("runs/") or Path(path).name in RUN_FILES


def quickstart(ratio: float, bigram: float, exact: float, longer: float) -> list[bool]:
    """Returns whether each expectation of the quickstart is met by these measurements."""
    experiment, module = load_experiment(PlanOptions("quickstart", "toy"))
    chain = []
    for perplexity, (name, stage) in zip((30.0, longer), experiment.arms["main"].items()):
        infilling = {"PSM": {"exact": 0.0, "examples": 8}, "SPM": {"exact": exact, "examples": 8}}
        probes = {
            "bigram": {"loss": bigram},
            "infilling": infilling,
            "perplexity": {"1024": {"perplexity": perplexity}},
        }
        losses = [{"step": 0, "validation_loss": 8.0}, {"step": 1, "validation_loss": 8.0 * ratio}]
        chain.append(StageResult(name, stage, [], losses, probes))
    return [expectation.met for expectation in module.finding({"main": [chain]})]


def test_expectations_of_the_quickstart_can_fail():
    assert quickstart(0.5, 4.5, 0.125, 20.0) == [True, True, True, True]
    assert quickstart(0.7, 4.5, 0.0, 40.0) == [False, False, False, False]


def test_the_two_experiments_of_the_paper_share_its_code_stage():
    """They differ in the infilling rate and in the vocabulary, which has no sentinels then."""
    first, second = (
        load_experiment(PlanOptions(name, "7b"))[0].arms[name]["code"]
        for name in ("code_llama", "code_llama_python")
    )
    assert (first.steps, first.optimizer, first.init) == (
        second.steps,
        second.optimizer,
        second.init,
    )
    assert (first.data.infilling.rate, second.data.infilling.rate) == (0.9, 0.0)
    assert inspect.getsource(load_file("code_llama")).count("steps=") == 0


def test_a_power_law_is_fitted_by_seed():
    scaling = load_file("scaling")
    experiment = scaling.experiment()
    models = [chain["code"].model for chain in experiment.arms.values()]
    sizes = dict(zip(experiment.arms, map(scaling.parameters, models)))
    assert max(sizes.values()) >= 30 * min(sizes.values())
    assert scaling.fit([10**5, 10**6], [2.0, 2.0 * 10**-0.2])[0] == pytest.approx(0.2)

    def law(exponent: float):
        return lambda arm, seed: (9.0, (sizes[arm] / 5.92e7) ** -(exponent + seed / 10))

    verdicts = {}
    for exponent in (0.13, 0.02, -0.1):
        finding = finding_of("scaling", no_probes, law(exponent))
        verdicts[exponent] = [difference.verdict for difference in finding.differences]
    assert verdicts[0.13] == ["agrees", "agrees"]
    assert verdicts[0.02] == ["agrees", "disagrees"]
    assert verdicts[-0.1] == ["disagrees", "disagrees"]
    finding = finding_of("scaling", no_probes, law(0.13))
    rows = {row[0]: row for row in finding.rows}
    assert rows["exponent of the fit"][2].startswith("0.13")
    assert rows["constant of the fit (parameters)"][2].startswith("5.92e+07")


@pytest.mark.parametrize("scale", ["toy", "12b"])
def test_the_best_checkpoint_of_codex_s_is_kept_while_later_losses_show_it(scale):
    experiment, _ = load_experiment(PlanOptions("codex_s", scale))
    stage = experiment.arms["codex_s"]["codex_s"]
    assert stage.checkpoint_every == stage.eval_every
    # Of the best step, and of those that the validation loss is seen not to fall at.
    kept_steps = (stage.keep_checkpoints - 1) * stage.checkpoint_every
    assert kept_steps >= min(1_000, stage.steps - stage.eval_every)
