"""The probes of a report: perplexity by context length, infilling of lines, samples."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from codellama_jax.report import figures
from codellama_jax.report.page import Code, Page, Part
from codellama_jax.report.results import StageResult

LINES_BEFORE, LINES_AFTER = 8, 5  # context lines of a sample

Answer = tuple[StageResult, Any]  # a stage and what one probe measured after it


def _answers(stages: Sequence[StageResult], key: str) -> list[Answer]:
    """Returns the stages after which a probe ran, with its result."""
    return [(result, result.probes[key]) for result in stages if result.probes.get(key)]


def _without_notes(page: Page, answers: Sequence[Answer]) -> list[Answer]:
    """Adds the reasons of probes that could not run and returns the other results."""
    measured = []
    for result, answer in answers:
        if "note" in answer:
            page.note(f"{result.name}: {answer['note']}")
        else:
            measured.append((result, answer))
    return measured


def perplexity_section(page: Page, stages: Sequence[StageResult]) -> None:
    """Adds perplexity by context length: a figure and a table."""
    answers = _answers(stages, "perplexity")
    if not answers:
        return
    page.heading("Perplexity by context length")
    measured = _without_notes(page, answers)
    if not measured:
        return
    curves, documents = {}, 0
    for result, answer in measured:
        curves[result.name] = {int(length): measures for length, measures in answer.items()}
        documents = max(documents, *(measures["documents"] for measures in answer.values()))
    caption = (
        f"Validation perplexity of the first tokens of the same {documents} documents, each read"
        " alone: of all these tokens (solid), and of their last quarter (dashed)."
    )
    page.figure("perplexity", caption, *figures.perplexity_figure(curves))
    lengths = sorted({length for by_length in curves.values() for length in by_length})
    rows = []
    for result, _ in measured:
        by_length = curves[result.name]
        cells = [_perplexities(by_length.get(length)) for length in lengths]
        rows.append((result.name, f"{result.stage.data.seq_len:,} tokens", *cells))
    headings = [f"{length:,} tokens" for length in lengths]
    page.table(("after stage", "trained on sequences of", *headings), rows)
    page.note("Perplexity (of the last quarter).")


def _perplexities(measures: Mapping[str, float] | None) -> str:
    if not measures:
        return ""
    return f"{measures['perplexity']:.2f} ({measures['last_block']:.2f})"


def infilling_section(page: Page, stages: Sequence[StageResult]) -> None:
    """Adds exact matches and losses by prompt format, and the first lines side by side."""
    answers = _answers(stages, "infilling")
    if not answers:
        return
    page.heading("Infilling of single lines")
    measured = _without_notes(page, answers)
    if not measured:
        return
    last, formats = measured[-1]
    headings = ["after stage"]
    for order in formats:
        headings += [f"{order} exact", f"{order} loss"]
    rows = []
    for result, answer in measured:
        row = [result.name]
        for measures in answer.values():
            row += [_exact(measures), f"{measures['loss']:.3f}"]
        rows.append(row)
    page.table(headings, rows)
    losses_of = next(iter(formats.values()))["loss_examples"]
    page.note(
        "Lines of held-out documents that fit the stage's sequences, generated greedily from the"
        " text before and after them. PSM: prefix, suffix, middle; SPM: suffix, prefix, middle."
        " Exact: the same line but for trailing spaces. Loss: nats per token of the true line,"
        f" over the first {losses_of}."
    )
    page.note(_better_format(last.name, formats))
    page.heading(f"The first of these lines, after {last.name}", 3)
    samples = zip(*(measures["samples"] for measures in formats.values()))
    page.table(("true line", *formats), [_line_cells(sample) for sample in samples])


def _exact(measures: Mapping[str, float]) -> str:
    exact, examples = measures["exact"], measures["examples"]
    return f"{exact:.1%} ({round(exact * examples)} of {examples})"


def _better_format(stage: str, formats: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a sentence on the format with most exact lines, then the smaller loss."""

    def quality(order: str) -> tuple[float, float]:
        return formats[order]["exact"], -formats[order]["loss"]

    best = max(formats, key=quality)
    return f"After {stage} the better format, by exact lines and then by loss, is {best}."


def _line_cells(samples: Sequence[Mapping[str, str]]) -> list[Code]:
    """Returns the true line, then the generated ones, ticked where exact.

    Indentation that all of them share is left out.
    """
    truth = samples[0]["middle"]
    generated = [sample["generated"] for sample in samples]
    lines = textwrap.dedent("\n".join([truth, *generated])).split("\n")
    cells = [Code(lines[0])]
    for line, text in zip(lines[1:], generated):
        cells.append(Code(line + ("  ✓" if text.rstrip() == truth.rstrip() else "")))
    return cells


def samples_section(page: Page, stages: Sequence[StageResult]) -> None:
    """Adds completions and infills of the last stage that was probed."""
    completions = _answers(stages, "completions")[-1:]
    infills = _answers(stages, "infills")[-1:]
    for result, samples in completions:
        page.heading("Completions")
        page.note(f"Greedy, after {result.name}; generated text is marked.")
        for sample in samples:
            page.code(("", [(sample["prompt"], ""), (sample["completion"], "mark")]))
    if infills:
        page.heading("Infills of held-out code")
    for result, samples in _without_notes(page, infills):
        page.note(f"PSM, greedy, after {result.name}, up to the EOT token or the token limit.")
        for sample in samples:
            page.code(
                ("generated", _around(sample, "generated", "mark")),
                ("original", _around(sample, "middle", "truth")),
            )


def _around(sample: Mapping[str, str], key: str, mark: str) -> list[Part]:
    """Returns a filled document with a few lines of context."""
    before, after = sample["prefix"].split("\n"), sample["suffix"].split("\n")
    shown_before, shown_after = before[-LINES_BEFORE - 1 :], after[: LINES_AFTER + 1]
    if len(before) > len(shown_before):
        shown_before = ["…", *shown_before]
    if len(after) > len(shown_after):
        shown_after = [*shown_after, "…"]
    return [("\n".join(shown_before), ""), (sample[key], mark), ("\n".join(shown_after), "")]
