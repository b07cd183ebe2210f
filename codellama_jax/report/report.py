"""Writes report.html and report.md from the folder of a run, whether it has finished or not."""

from __future__ import annotations

import functools
import itertools
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
from codellama_jax.report.probes import probe_section
from codellama_jax.report.reading import read_data_counts, read_run
from codellama_jax.report.results import Results, StageResult, complete, unit_of
from codellama_jax.report.results_file import Measured, write_results
from codellama_jax.report.tables import (
    bigram_loss,
    corpus_section,
    cost_note,
    data_section,
    duration,
    model_section,
    stages_section,
)
from codellama_jax.system.files import is_bucket, write_file

# A labelled line in the docstring of an experiment file, such as "Cost      5 minutes".
FIELD = re.compile(r"([A-Z]\w*)\s{2,}(.*)")
COMMAND = re.compile(r"(python|make|launch\.py|codellama-jax)\b")  # the start of a command
# The names of vector units by their flag in /proc/cpuinfo, the widest first.
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}
SCRIPT = "codellama-jax"  # the installed command
PROMPT = "def mean(xs):"  # of the command that the report suggests


def write_report(
    out: epath.Path,
    experiment: Experiment,
    claim: str,
    finding: FindingOf | None = None,
    seconds: float | None = None,
) -> None:
    """Writes report.html (one file), report.md and figures/*.png into the run's folder.

    The report of a run with several seeds shows the finding and the stages of the first seed; that
    of one seed also shows the curves and the sections of the probes.

    Args:
      out: the folder of the run, local or gs://.
      experiment: its config.
      claim: the docstring of the experiment file.
      finding: the function `finding` of the experiment file, None if it has none.
      seconds: the time since this command was started; None leaves it out.
    """
    out = epath.Path(out)
    folder = RunFolder(out)
    results = read_run(folder, experiment)
    arms = {arm: seeds[0] for arm, seeds in results.items()}
    stages = list(itertools.chain(*arms.values()))  # of the first seed
    everything: list[StageResult] = []
    for seeds in results.values():
        everything += itertools.chain(*seeds)
    page = Page(f"{experiment.name}, {experiment.scale} scale")
    # The verdict is first on the page, because it is the answer to the question of the experiment.
    if finding:
        verdict = write_finding(page, experiment.name, complete(results), finding)
        # An experiment with expectations for a single seed has no differences to write.
        if verdict:
            measured = Measured.of(experiment.name, experiment.scale, verdict)
            write_results(folder.finding, measured)
    _claim(page, claim, bool(finding))
    _circumstances(page, everything, seconds)
    _damage(page, everything)
    stages_section(page, stages)
    if experiment.seeds > 1:
        cost_note(page, out, experiment.seeds, everything)
    model_section(page, stages, experiment.tokenizer)
    _guarded(page, "corpus", lambda: corpus_section(page, folder.corpus))
    written = read_data_counts(folder, experiment)
    _guarded(page, "data that models wrote", lambda: data_section(page, written))
    # Curves and samples of every seed would make a page of dozens of sections.
    if experiment.seeds > 1:
        _validation(page, experiment.name, results)
    else:
        _curves(page, arms)
        for name, probe in experiment.probes.items():
            section = functools.partial(probe_section, page, probe, stages)
            _guarded(page, name, section)
    _next_commands(page, out, experiment, everything)
    # Figures first: the Markdown refers to them.
    for name, png in page.images.items():
        write_file(folder.figure(name), png)
    write_file(folder.report_markdown, page.markdown())
    write_file(folder.report_html, page.html())


def _guarded(page: Page, name: str, section: Callable[[], None]) -> None:
    """Adds a section, or a note if a damaged file makes that impossible."""
    mark = page.mark()  # a section may fail after it has added blocks
    try:
        section()
    except DAMAGED as error:
        page.rewind(mark)
        page.note(
            f"The section on {name} is left out: corpus.json or probes.json does not have the"
            f" expected form ({type(error).__name__}: {error}). Remove that file and run the same"
            " command again; only the contents of that file are computed again."
        )


def _claim(page: Page, claim: str, checked: bool) -> None:
    """Adds the docstring of the experiment file: its first line, then labelled fields and text.

    `checked` is whether the file has a function that compares "Expected" with the run.
    """
    first, _, rest = claim.strip().partition("\n")
    page.text(first)
    fields: list[tuple[str, str]] = []
    for paragraph in re.split(r"\n\s*\n", rest.strip("\n")):
        # Labelled lines become a list of terms, any other paragraph is joined to running text.
        labelled = _fields(paragraph)
        if labelled:
            page.definitions(labelled)
        elif paragraph.strip():
            page.text(" ".join(paragraph.split()))
        fields += labelled
    if not checked and any(label == "Expected" for label, _ in fields):
        page.note('No verdict: this experiment file does not compare "Expected" with the run.')


def _fields(paragraph: str) -> list[tuple[str, str]]:
    """Returns (label, text) of the labelled lines of a paragraph, [] for a paragraph of text.

    A line that begins with a space continues the one before, or is a further command.
    """
    fields: list[tuple[str, str]] = []
    for line in paragraph.split("\n"):
        match = FIELD.fullmatch(line.rstrip())
        if match:
            fields.append((match[1], match[2]))
        # A line that is neither labelled nor indented makes the paragraph ordinary text.
        elif not fields or not line.startswith(" "):
            return []
        else:
            label, text = fields[-1]
            if label == "Command" and COMMAND.match(line.strip()):
                fields.append((label, line.strip()))
            else:
                fields[-1] = (label, f"{text} {line.strip()}")
    return [(label, Code(text)) if label == "Command" else (label, text) for label, text in fields]


def _circumstances(page: Page, results: list[StageResult], seconds: float | None) -> None:
    """Adds command, time, software and devices."""
    device = jax.devices()[0]
    # Equal stages of several arms are trained once, in one folder.
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
        page.note("All times and rates were measured on a CPU; those of an accelerator differ.")


def processor() -> str:
    """Returns the name of the processor, its number of cores and its widest vector unit.

    They decide the speed on a CPU. Linux lists them for each core; the first one is read.
    """
    info = epath.Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.read_text().split("\n") if info.exists() else []:
        key, _, value = line.partition(":")
        # The first core's values: all cores repeat the same keys.
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    description = f"{name}, {os.cpu_count()} cores"
    for flag, vector_unit in VECTORS.items():
        if flag in flags:
            return f"{description}, {vector_unit}"
    return description


def _damage(page: Page, results: list[StageResult]) -> None:
    """Adds a note for each damaged file, once if several stages read it."""
    lines: dict[str, None] = {}
    for result in results:
        lines |= dict.fromkeys(result.damage)
    for line in lines:
        page.note(f"Damaged file: {line}")


def _validation(page: Page, name: str, results: Results) -> None:
    """Adds the validation loss of all seeds by tokens, for the last stage of each arm.

    A stage of 0 steps at the end of an arm only evaluates, so the last one that trained is shown.
    """
    lines: dict[str, list[list[tuple[float, float]]]] = {}
    shown: list[StageResult] = []
    for arm, seeds in results.items():
        for chain in seeds:
            trained = [result for result in chain if result.stage.steps]
            last = (trained or chain)[-1]
            if last.validation:
                lines.setdefault(arm, []).append(last.curve)
                shown.append(last)
    if lines:
        page.heading("Validation loss by arm")
        x = "tokens seen in the arm's last trained stage"
        panel = Panel(x, f"validation loss ({unit_of(shown)})", lines)
        caption = "Thin: each seed; thick: their mean."
        page.figure(f"{name}-validation", caption, *figures.panels_figure([panel]))


def _curves(page: Page, arms: dict[str, list[StageResult]]) -> None:
    """Adds a figure of loss, learning rate and throughput for each arm."""
    for arm, results in arms.items():
        # A stage of 0 steps has one validation and nothing over tokens.
        measured = [result for result in results if result.measured and result.stage.steps]
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
    bigram = bigram_loss(result)
    return figures.Curves(title, result.training, result.curve, bigram, result.unit)


def _next_commands(
    page: Page,
    out: epath.Path,
    experiment: Experiment,
    results: list[StageResult],
) -> None:
    """Adds the commands that resume an unfinished run or use the trained model."""
    page.heading("Next commands")
    # A run may be unfinished and yet have stages whose model can be used.
    if not all(result.done for result in results):
        page.text("The run is not finished. The same command resumes it:")
        page.code(("", [(shlex.join(["python", *sys.argv]), "")]))
    if not any(result.done for result in results):
        return
    run, program = shlex.quote(_shown(out)), _program()
    lines = [f'{program} complete {run} "{PROMPT}" --max-new-tokens 48']
    has_infilling = any(result.stage.data.infilling.rate for result in results)
    if has_infilling:
        lines.append(f"{program} infill {run} FILE.py")
    lines += [
        f"{program} evaluate humaneval --run {run} --data HumanEval.jsonl.gz --out RESULTS",
        f"{program} export {run} FOLDER --to hf",
    ]
    page.code(("", [("\n".join(lines) + "\n", "")]))
    notes = ["FILE.py is a file that contains <FILL_ME>."] if has_infilling else []
    if len(experiment.arms) > 1:
        notes.append(f"The first arm is used; --arm {'|'.join(experiment.arms)} selects another.")
    if notes:
        page.note(" ".join(notes))


def _shown(out: epath.Path) -> str:
    """Returns a path as a user types it: relative if it is below the current folder."""
    if is_bucket(out):
        return str(out)
    path = Path(out).absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _program() -> str:
    """Returns the start of a command: the installed script, or `python -m` if there is none."""
    script = Path(sys.executable).parent / SCRIPT
    if not script.exists():
        return "python -m codellama_jax"
    return _shown(epath.Path(script)) if script.is_relative_to(Path.cwd()) else SCRIPT
