"""Writes report.html and report.md from a run's folder, also while stages are missing."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.config import Experiment
from codellama_jax.models.family import family_of
from codellama_jax.report import figures
from codellama_jax.report.findings import DAMAGED, FindingOf, Panel, write_finding
from codellama_jax.report.page import Code, Page
from codellama_jax.report.probes import (
    probe_section,
)
from codellama_jax.report.reading import read_run
from codellama_jax.report.results import Results, StageResult, complete
from codellama_jax.report.tables import (
    bigram_loss,
    corpus_section,
    cost_note,
    duration,
    model_section,
    stages_section,
)
from codellama_jax.system.files import is_bucket, write_file

FIELD = re.compile(r"([A-Z]\w*)\s{2,}(.*)")  # "Cost      5 minutes" in a file's docstring
COMMAND = re.compile(r"(python|make|launch\.py|codellama-jax)\b")
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # flags of /proc/cpuinfo, the widest first
SCRIPT = "codellama-jax"
PROMPT = "def mean(xs):"


def write_report(
    out: epath.Path,
    experiment: Experiment,
    claim: str,
    finding: FindingOf | None = None,
    seconds: float | None = None,
) -> None:
    """Writes report.html (one file), report.md and figures/*.png into the run's folder.

    A run of several seeds shows its finding and the stages of the first seed; a run of one seed
    also shows its curves and the sections of its probes.

    Args:
      out: the run's folder, local or gs://.
      experiment: its config.
      claim: the docstring of the experiment file.
      finding: the function `finding` of the experiment file.
      seconds: how long this start of the command has taken.
    """
    out = epath.Path(out)
    folder = RunFolder(out)
    results = read_run(folder, experiment)
    arms = {arm: seeds[0] for arm, seeds in results.items()}
    stages = [result for chain in arms.values() for result in chain]
    everything = [stage for seeds in results.values() for chain in seeds for stage in chain]
    page = Page(f"{experiment.name}, {experiment.scale} scale")
    if finding:
        write_finding(page, experiment.name, complete(results), finding)
    _claim(page, claim, bool(finding))
    _circumstances(page, everything, seconds)
    _damage(page, everything)
    stages_section(page, stages)
    if experiment.seeds > 1:
        cost_note(page, out, experiment.seeds, everything)
    model_section(page, stages, experiment.tokenizer)
    _guarded(page, "corpus", lambda: corpus_section(page, folder.corpus))
    if experiment.seeds > 1:
        _validation(page, experiment.name, results)
    else:
        _curves(page, arms)
        for name, probe in experiment.probes.items():
            section = functools.partial(probe_section, page, probe, stages)
            _guarded(page, name, section)
    _next_commands(page, out, experiment, everything)
    for name, png in page.images.items():
        write_file(folder.figure(name), png)
    write_file(folder.report_markdown, page.markdown())
    write_file(folder.report_html, page.html())


def _guarded(page: Page, name: str, section: Callable[[], None]) -> None:
    """Adds a section, or a note where a damaged file does not hold what the section needs."""
    mark = page.mark()
    try:
        section()
    except DAMAGED as error:
        page.rewind(mark)
        page.note(
            f"The section on {name} is left out: corpus.json or probes.json does not have the"
            f" expected form ({type(error).__name__}: {error}). Remove that file and run the same"
            " command again; only what it holds is computed anew."
        )


def _claim(page: Page, claim: str, checked: bool) -> None:
    """Adds the experiment file's docstring: its first line, then labelled fields and prose."""
    first, _, rest = claim.strip().partition("\n")
    page.text(first)
    fields: list[tuple[str, str]] = []
    for paragraph in re.split(r"\n\s*\n", rest.strip("\n")):
        labelled = _fields(paragraph)
        if labelled:
            page.definitions(labelled)
        elif paragraph.strip():
            page.text(" ".join(paragraph.split()))
        fields += labelled
    if not checked and any(label == "Expected" for label, _ in fields):
        page.note('No verdict: this experiment file does not compare "Expected" with the run.')


def _fields(paragraph: str) -> list[tuple[str, str]]:
    """Returns (label, text) of lines such as "Cost      5 minutes" and their continuations."""
    fields: list[tuple[str, str]] = []
    for line in paragraph.split("\n"):
        match = FIELD.fullmatch(line.rstrip())
        if match:
            fields.append((match[1], match[2]))
        elif not fields or not line.startswith(" "):
            return []
        else:
            label, text = fields[-1]
            if label == "Command" and COMMAND.match(line.strip()):
                fields.append((label, line.strip()))
            else:
                fields[-1] = (label, f"{text} {line.strip()}")
    return [(label, Code(text) if label == "Command" else text) for label, text in fields]


def _circumstances(page: Page, results: list[StageResult], seconds: float | None) -> None:
    device = jax.devices()[0]
    trained = {result.trained_at: result.seconds for result in results if result.measured}
    time = f"{duration(sum(trained.values()))} of training and validation, all stages and starts"
    if seconds is not None:
        included = "corpus, tokenizer, compilation, training, probes"
        time = f"{duration(seconds)} for this start of the command ({included}); {time}"
    entries = [
        ("Started as", Code(shlex.join(["python", *sys.argv]))),
        ("Total time", time),
        ("Software", f"JAX {jax.__version__}, Python {platform.python_version()}"),
        ("Devices", f"{jax.device_count()} × {device.device_kind}"),
    ]
    if device.platform == "cpu":
        entries.append(("Processor", processor()))
    page.definitions(entries)
    if device.platform == "cpu":
        page.note("All times and rates were measured on a CPU and hold for no accelerator.")


def processor() -> str:
    """Returns the name of the processor, its number of cores and its widest vector unit."""
    info = epath.Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.read_text().split("\n") if info.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    vectors = [vector for flag, vector in VECTORS.items() if flag in flags][:1]
    return ", ".join([name, f"{os.cpu_count()} cores", *vectors])


def _damage(page: Page, results: list[StageResult]) -> None:
    for line in dict.fromkeys(line for result in results for line in result.damage):
        page.note(f"Damaged file: {line}")


def _validation(page: Page, name: str, results: Results) -> None:
    """Adds validation loss over the tokens of each arm's last trained stage, all seeds."""
    lines: dict[str, list[list[tuple[float, float]]]] = {}
    for arm, seeds in results.items():
        for chain in seeds:
            last = [result for result in chain if result.stage.steps] or chain
            if last[-1].validation:
                lines.setdefault(arm, []).append(last[-1].curve)
    if lines:
        page.heading("Validation loss by arm")
        x = "tokens seen in the arm's last trained stage"
        panel = Panel(x, "validation loss (nats per token)", lines)
        caption = "Thin: each seed; thick: their mean."
        page.figure(f"{name}-validation", caption, *figures.panels_figure([panel]))


def _curves(page: Page, arms: dict[str, list[StageResult]]) -> None:
    for arm, results in arms.items():
        measured = [result for result in results if result.measured]
        if not measured:
            continue
        page.heading("Training" if len(arms) == 1 else f"Training: {arm}")
        caption = "Loss, learning rate and throughput over the tokens of each stage."
        drawing = figures.training_figure([_curve(result) for result in measured])
        page.figure(f"training-{arm}", caption, *drawing)


def _curve(result: StageResult) -> figures.Curves:
    stage = result.stage
    sequences = f"{stage.data.seq_len:,} tokens per sequence"
    title = f"{result.name}\n{sequences}, {family_of(stage.model).positions(stage.model)}"
    return figures.Curves(title, result.training, result.curve, bigram_loss(result))


def _next_commands(
    page: Page,
    out: epath.Path,
    experiment: Experiment,
    results: list[StageResult],
) -> None:
    """Adds the commands that continue an unfinished run or use a finished one."""
    page.heading("Next commands")
    if not all(result.done for result in results):
        page.text("The run is not finished. The same command resumes it:")
        page.code(("", [(shlex.join(["python", *sys.argv]), "")]))
    if not any(result.done for result in results):
        return
    run, program = shlex.quote(_shown(out)), _program()
    lines = [f'{program} complete {run} "{PROMPT}" --max-new-tokens 48']
    stages = [stage for chain in experiment.arms.values() for stage in chain.values()]
    if any(stage.data.infilling.rate for stage in stages):
        lines.append(f"{program} infill {run} FILE.py")
    lines += [
        f"{program} evaluate humaneval --run {run} --data HumanEval.jsonl.gz --out RESULTS",
        f"{program} export {run} FOLDER --to hf",
    ]
    page.code(("", [("\n".join(lines) + "\n", "")]))
    notes = ["FILE.py is a file that contains <FILL_ME>."] if len(lines) == 4 else []
    if len(experiment.arms) > 1:
        notes.append(f"The first arm is used; --arm {'|'.join(experiment.arms)} selects another.")
    if notes:
        page.note(" ".join(notes))


def _shown(out: epath.Path) -> str:
    """Returns a path as a user types it: relative where it is below the current folder."""
    if is_bucket(out):
        return str(out)
    path = Path(out).absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _program() -> str:
    """Returns how the console script is called, `python -m` where it is not installed."""
    script = Path(sys.executable).parent / SCRIPT
    if not script.exists():
        return "python -m codellama_jax"
    return _shown(epath.Path(script)) if script.is_relative_to(Path.cwd()) else SCRIPT
