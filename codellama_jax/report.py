"""Writes report.html and report.md from what a run left in its folder; works while stages are missing or unfinished."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
import textwrap
from typing import Any

import jax
import numpy as np
from etils import epath

from codellama_jax import figures, reuse
from codellama_jax.accounting import parameter_count, stage_tokens
from codellama_jax.config import Experiment, Stage, seeded
from codellama_jax.findings import FindingOf, Panel, write_finding
from codellama_jax.page import Code, Page, Part
from codellama_jax.plan import short
from codellama_jax.results import Results, StageResult, complete
from codellama_jax.training.metrics import read_metrics

SPLITS = ("train", "validation")
LINES_BEFORE, LINES_AFTER = 8, 5  # of a sample's context


def write_report(out: epath.Path, experiment: Experiment, claim: str, finding: FindingOf | None = None) -> None:
    """Writes report.html (one file), report.md and figures/*.png into the run's folder, local or gs://.

    A run of several seeds shows what it found and the stages of its first seed; one of a single seed everything.
    """
    out = epath.Path(out)
    results = read_run(out, experiment)
    arms = {arm: seeds[0] for arm, seeds in results.items()}
    stages = [result for chain in arms.values() for result in chain]
    page = Page(f"{experiment.name}, {experiment.scale} scale")
    if finding:
        write_finding(page, experiment.name, complete(results), finding)
    _head(page, claim)
    _stages(page, stages)
    if experiment.seeds > 1:
        _cost(page, out, experiment.seeds, [result for chains in results.values() for chain in chains for result in chain])
    _corpus(page, out / "corpus.json")
    if experiment.seeds > 1:
        _validation(page, experiment.name, results)
    else:
        _curves(page, arms)
        _perplexity(page, stages)
        _infilling(page, stages)
        _samples(page, stages)
    (out / "report.html").write_text(page.html())
    (out / "report.md").write_text(page.markdown())
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, png in page.images.items():
        (out / "figures" / f"{name}.png").write_bytes(png)


def read_run(out: epath.Path, experiment: Experiment) -> Results:
    """Returns the results of each arm's seeds and stages, in order."""
    prefix = lambda arm: f"{arm}/" if len(experiment.arms) > 1 else ""
    return {
        arm: [
            [read_stage(out / seeded(arm, number) / name, prefix(arm) + name, stage) for name, stage in chain.items()]
            for number in range(experiment.seeds)
        ]
        for arm, chain in experiment.arms.items()
    }


def read_stage(folder: epath.Path, name: str, stage: Stage) -> StageResult:
    """Reads a stage's metrics and probes. Of lines that a resumed run wrote again, the last one counts."""
    trained_at = reuse.followed(folder)
    lines = read_metrics(trained_at / "metrics.jsonl")
    by_step = lambda key: [line for _, line in sorted({line["step"]: line for line in lines if key in line}.items())]
    training, validation = by_step("loss"), by_step("validation_loss")
    steps, tokens = ([0, *(line[key] for line in training)] for key in ("step", "tokens"))
    validation = [line | {"tokens": float(np.interp(line["step"], steps, tokens))} for line in validation]
    return StageResult(name, stage, training, validation, _json(folder / "probes.json"), str(trained_at))


def _json(path: epath.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _validation(page: Page, name: str, results: Results) -> None:
    """Validation loss over the tokens of each arm's last trained stage, all seeds."""
    stage = lambda chain: next((result for result in reversed(chain) if result.stage.steps), chain[-1])
    lines = {arm: [s.curve for chain in seeds if (s := stage(chain)).validation] for arm, seeds in results.items()}
    lines = {arm: seeds for arm, seeds in lines.items() if seeds}
    if lines:
        page.heading("Validation loss by arm")
        panel = Panel("tokens seen in the arm's last trained stage", "validation loss (nats a token)", lines)
        page.figure(f"{name}-validation", "Thin: each seed; thick: their mean.", *figures.panels_figure([panel]))


def _head(page: Page, claim: str) -> None:
    first, _, rest = claim.strip().partition("\n")
    page.text(first)
    if rest.strip():
        page.code(("", [(rest.strip("\n") + "\n", "")]))
    device = jax.devices()[0]
    rows = [
        ("command", Code(shlex.join(["python", *sys.argv]))),
        ("software", f"JAX {jax.__version__}, Python {platform.python_version()}"),
        ("devices", f"{jax.device_count()} × {device.device_kind}"),
    ]
    if device.platform == "cpu":
        rows.append(("processor", f"{_processor()}, {os.cpu_count()} cores"))
    page.table(("", ""), rows)
    if device.platform == "cpu":
        page.note("Every time and rate on this page was measured on a CPU and says nothing about an accelerator.")


def _processor() -> str:
    info = epath.Path("/proc/cpuinfo")
    lines = info.read_text().split("\n") if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _stages(page: Page, stages: list[StageResult]) -> None:
    page.heading("Stages")
    rates = ("tokens / s", "FLOP / s", *(["MFU (causal)"] if any("mfu" in line for s in stages for line in s.training) else []))
    losses = ("validation loss", *(["bigram"] if any("bigram" in s.probes for s in stages) else []))
    headings = ("stage", "parameters", "tokens", "steps", "batch", "learning rate", "time", *rates, *losses)
    page.table(headings, [[*_plan_cells(s), *_speed_cells(s, len(rates)), *_loss_cells(s, len(losses))] for s in stages])
    page.note(
        "Losses in nats a token: at the stage's first and last evaluation, and their ratio. Rates are medians over the logged steps."
        + " The bigram model (interpolated modified Kneser-Ney) counted every token that its stage and those before it trained on; it is"
        " measured on the validation rows of its stage." * ("bigram" in losses)
    )


def _cost(page: Page, out: epath.Path, seeds: int, results: list[StageResult]) -> None:
    """Says how long the stages of all seeds took, each counted once wherever it was trained."""
    seconds = {r.trained_at: max(line["seconds"] for line in (*r.training, *r.validation)) for r in results if r.measured}
    here = [time for at, time in seconds.items() if epath.Path(at).is_relative_to(out)]
    page.note(
        f"These are the stages of the first seed. All {seeds} seeds together are {len(seconds)} different ones, which took"
        f" {_duration(sum(seconds.values()))}; this run trained {len(here)} of them in {_duration(sum(here))} and read the others from"
        " earlier runs."
    )


def _plan_cells(result: StageResult) -> list[str]:
    stage, rate = result.stage, result.stage.optimizer
    last = result.training[-1] if result.training else {"step": 0, "tokens": 0}
    done = last["step"] == stage.steps
    return [
        result.name,
        short(parameter_count(stage.model)),
        short(last["tokens"]) if result.training else f"{short(stage_tokens(stage))} planned",
        f"{stage.steps:,}" if done else f"{last['step']:,} of {stage.steps:,}" if result.measured else f"{stage.steps:,}, not run",
        f"{stage.data.batch_size:,} × {stage.data.seq_len:,}",
        f"{rate.peak_lr:.3g} → {rate.peak_lr * rate.final_fraction:.2g}",
    ]


def _speed_cells(result: StageResult, count: int) -> list[str]:
    lines = [*result.training, *result.validation]
    median = lambda key: statistics.median(values) if (values := [line[key] for line in result.training if key in line]) else None
    flops = median("flops_per_second")
    cells = [
        _duration(max(line["seconds"] for line in lines)) if lines else "",
        _number(median("tokens_per_second"), ",.0f"),
        "" if flops is None else short(flops).replace("B", "G"),
        _number(median("mfu"), ".1%") + (f" ({causal:.1%})" if (causal := median("mfu_causal")) is not None else ""),
    ]
    return cells[: count + 1]


def _loss_cells(result: StageResult, count: int) -> list[str]:
    losses = [line["validation_loss"] for line in result.validation]
    change = f"{losses[0]:.3f} → {losses[-1]:.3f} ({losses[-1] / losses[0]:.2f} ×)" if losses else ""
    return [change, _number(result.probes.get("bigram", {}).get("loss"), ".3f")][:count]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _corpus(page: Page, path: epath.Path) -> None:
    """One column a source: its files, and its documents in each way that stages cut them."""
    sources: dict[str, dict[str, int]] = {}
    for name, counts in _json(path).items():
        source, _, cut = name.partition(", ")
        label = lambda key, cut=cut or "whole files": f"{key} documents, {cut}" if key in SPLITS else key.replace("_", " ")
        sources.setdefault(source, {}).update({label(key): count for key, count in counts.items()})
    if not sources:
        return
    page.heading("Corpus")
    keys = dict.fromkeys(key for counts in sources.values() for key in counts)
    page.table(("", *sources), [(key, *(_number(counts.get(key), ",") for counts in sources.values())) for key in keys])
    page.note("Files and characters kept, then files dropped by reason, then documents. No file has parts in both splits.")


def _curves(page: Page, arms: dict[str, list[StageResult]]) -> None:
    for arm, results in arms.items():
        measured = [r for r in results if r.measured]
        if not measured:
            continue
        page.heading("Training" if len(arms) == 1 else f"Training: {arm}")
        caption = "Loss, learning rate and throughput over the tokens of each stage."
        page.figure(f"training-{arm}", caption, *figures.training_figure([_curve(r) for r in measured]))


def _curve(result: StageResult) -> figures.Curves:
    stage = result.stage
    title = f"{result.name}\n{stage.data.seq_len:,} tokens a row, RoPE base {stage.model.rope_theta:,.0f}"
    validation = [(line["tokens"], line["validation_loss"]) for line in result.validation]
    return figures.Curves(title, result.training, validation, result.probes.get("bigram", {}).get("loss"))


def _asked(stages: list[StageResult], key: str) -> list[tuple[StageResult, Any]]:
    """The stages of which a probe was asked, with its answer."""
    return [(s, s.probes[key]) for s in stages if s.probes.get(key)]


def _answered(page: Page, found: list[tuple[StageResult, Any]]) -> list[tuple[StageResult, Any]]:
    """Prints the notes of answers that could not be had and returns the others."""
    for result, answer in found:
        if "note" in answer:
            page.note(f"{result.name}: {answer['note']}")
    return [(result, answer) for result, answer in found if "note" not in answer]


def _perplexity(page: Page, stages: list[StageResult]) -> None:
    found = _asked(stages, "perplexity")
    if not found:
        return
    page.heading("Perplexity by context length")
    curves = {s.name: {int(length): m for length, m in answer.items()} for s, answer in _answered(page, found)}
    if not curves:
        return
    lengths = sorted({length for by_length in curves.values() for length in by_length})
    documents = max(m["documents"] for by_length in curves.values() for m in by_length.values())
    caption = (
        f"Validation perplexity of the first tokens of the same {documents} documents, each read alone: of all these tokens (solid),"
        " and of their last quarter (dashed)."
    )
    page.figure("perplexity", caption, *figures.perplexity_figure(curves))
    cell = lambda m: f"{m['perplexity']:.2f} ({m['last_block']:.2f})" if m else ""
    trained = {s.name: f"{s.stage.data.seq_len:,}" for s in stages}
    rows = [(name, trained[name], *(cell(by_length.get(n)) for n in lengths)) for name, by_length in curves.items()]
    page.table(("after stage", "trained on rows of", *(f"{n:,} tokens" for n in lengths)), rows)
    page.note("Perplexity (of the last quarter).")


def _infilling(page: Page, stages: list[StageResult]) -> None:
    found = _asked(stages, "infilling")
    if not found:
        return
    page.heading("Infilling of single lines")
    found = _answered(page, found)
    if not found:
        return
    exact = lambda m: f"{m['exact']:.1%} ({round(m['exact'] * m['examples'])} of {m['examples']})"
    rows = [(s.name, *(text for m in answer.values() for text in (exact(m), f"{m['loss']:.3f}"))) for s, answer in found]
    page.table(("after stage", *(text for order in found[0][1] for text in (f"{order} exact", f"{order} loss"))), rows)
    page.note(
        "Lines of held-out documents that fit the stage's rows, generated greedily from what stands before and after them. Exact: the"
        f" same line but for trailing spaces. Loss: nats a token of the true line, over the first {found[-1][1]['PSM']['loss_examples']}."
    )
    last, answer = found[-1]
    page.heading(f"The first of these lines, after {last.name}", 3)
    rows = [_line_cells(samples) for samples in zip(*(m["samples"] for m in answer.values()))]
    page.table(("true line", *answer), rows)


def _line_cells(samples: tuple[dict[str, str], ...]) -> list[Code]:
    """The true line, then what each format made of it, ticked where exact; indentation that all share is left out."""
    truth = samples[0]["middle"]
    lines = textwrap.dedent("\n".join([truth, *(s["generated"] for s in samples)])).split("\n")
    ticks = ["", *("  ✓" if s["generated"].rstrip() == truth.rstrip() else "" for s in samples)]
    return [Code(line + tick) for line, tick in zip(lines, ticks)]


def _samples(page: Page, stages: list[StageResult]) -> None:
    """Shows what the last stage that was asked generated."""
    completions, infills = (_asked(stages, key)[-1:] for key in ("completions", "infills"))
    if completions:
        page.heading("Completions")
        page.note(f"Greedy, after {completions[0][0].name}; what the model wrote is marked.")
        for sample in completions[0][1]:
            page.code(("", [(sample["prompt"], ""), (sample["completion"], "mark")]))
    if infills:
        page.heading("Infills of held-out code")
        for result, samples in _answered(page, infills):
            page.note(f"PSM, greedy, after {result.name}, until the model ends the middle or runs out of tokens.")
            for sample in samples:
                page.code(("by the model", _around(sample, "generated", "mark")), ("as it was", _around(sample, "middle", "truth")))


def _around(sample: dict[str, str], key: str, mark: str) -> list[Part]:
    """Returns a filled document, cut to a few lines of context."""
    before, after = sample["prefix"].split("\n"), sample["suffix"].split("\n")
    prefix = "\n".join(["…"] * (len(before) > LINES_BEFORE + 1) + before[-LINES_BEFORE - 1 :])
    suffix = "\n".join(after[: LINES_AFTER + 1] + ["…"] * (len(after) > LINES_AFTER + 1))
    return [(prefix, ""), (sample[key], mark), (suffix, "")]
