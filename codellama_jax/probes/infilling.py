"""Infilling of held-out code by prompt format and by what is taken out (Code Llama, section 3.2).

In the paper's tables 6 and 14 a middle counts as right when it is the same line or when tests pass;
here it must be the same text. A toy model seldom writes that, so there are also graded measures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from codellama_jax.config import Examples, Probe, Tokens
from codellama_jax.data.infilling import infill_ids, prompt_ids
from codellama_jax.errors import UserError
from codellama_jax.probes.held_out import (
    Example,
    Splits,
    held_out_examples,
    lines_to_fill,
    random_spans,
    several_lines,
    single_lines,
)
from codellama_jax.probes.subject import Subject
from codellama_jax.report.page import Code

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.report.page import Page
    from codellama_jax.report.results import StageResult

CACHED_TOKENS = 65_536  # of a batch that generates: bounds the memory
LOSS_EXAMPLES = 128  # whose loss is measured: it needs far fewer than the share of exact lines does
SAMPLES = 8  # lines kept with what was generated for them


class Kind(NamedTuple):
    """What is taken out of a document, and how its generation ends."""

    splits: Splits
    stop_strings: tuple[str, ...] = ()
    # Only where a prefix may end inside a token: no piece spans a newline.
    healing: bool = False


class Format(NamedTuple):
    """A prompt format."""

    spm: bool
    healing: bool = False


LINE = Kind(single_lines, ("\n",))
KINDS = {
    "single-line": LINE,
    "multi-line": Kind(several_lines),
    "random-span": Kind(random_spans, healing=True),
}
FORMATS = {"PSM": Format(False), "SPM": Format(True), "SPM, healed": Format(True, healing=True)}

Measures = dict[str, list[float]]


@dataclass(frozen=True)
class Infilling(Probe, name="infilling"):
    """Single lines, filled in greedily in PSM and SPM format, up to the first newline.

    For each format: `exact`, the share of lines that are right but for trailing spaces; `examples`,
    their number; `loss`, nats per token of the first `loss_examples` true lines; `samples`, the
    first few with what was generated.
    """

    title = "Infilling of single lines"

    examples: Examples
    max_new_tokens: Tokens = 64

    def measure(self, subject: Subject) -> dict[str, dict[str, Any]]:
        examples = lines_to_fill(subject, self.examples, self.max_new_tokens)
        return {
            name: _line_measures(subject.model, examples, self.max_new_tokens, FORMATS[name])
            for name in ("PSM", "SPM")
        }

    def show(self, page: Page, answers: Sequence[tuple[StageResult, Any]]) -> None:
        last, formats = answers[-1]
        headings = ["after stage"]
        for order in formats:
            headings += [f"{order} exact", f"{order} loss"]
        rows = []
        for result, answer in answers:
            row = [result.name]
            for measures in answer.values():
                row += [_exact(measures), f"{measures['loss']:.3f}"]
            rows.append(row)
        page.table(headings, rows)
        losses_of = next(iter(formats.values()))["loss_examples"]
        page.note(
            "Lines of held-out documents that fit the stage's sequences, generated greedily from"
            " the text before and after them. PSM: prefix, suffix, middle; SPM: suffix, prefix,"
            " middle. Exact: the same line but for trailing spaces. Loss: nats per token of the"
            f" true line, over the first {losses_of}."
        )
        page.note(_better_format(last.name, formats))
        page.heading(f"The first of these lines, after {last.name}", 3)
        samples = zip(*(measures["samples"] for measures in formats.values()))
        page.table(("true line", *formats), [_line_cells(sample) for sample in samples])


@dataclass(frozen=True)
class InfillingKinds(Probe, name="infilling_kinds"):
    """Middles of several kinds, filled in greedily in every format.

    For each kind and format, one number per example: `exact`, 1.0 where the text is right but for
    trailing spaces; `right`, the share of its characters before the first wrong one; `loss`, nats
    per character of the true middle.
    """

    kinds: tuple[Literal["single-line", "multi-line", "random-span"], ...]
    examples: Examples = 128  # of each kind
    max_new_tokens: Tokens = 64

    def measure(self, subject: Subject) -> dict[str, dict[str, Measures]]:
        answers: dict[str, dict[str, Measures]] = {}
        limits = (self.examples, subject.seq_len, self.max_new_tokens, subject.seed)
        for name in self.kinds:
            kind = KINDS[name]
            tokenizer, texts = subject.model.tokenizer, subject.documents
            examples = held_out_examples(kind.splits, tokenizer, texts, *limits)
            if not examples:
                fits = f"no held-out document that fits {subject.seq_len} tokens"
                raise UserError(f"{fits} has a {name} middle of at most {self.max_new_tokens}")
            answers[name] = {}
            for order, form in FORMATS.items():
                if kind.healing or not form.healing:
                    measures = _measures(subject.model, examples, self.max_new_tokens, kind, form)
                    answers[name][order] = measures
        return answers


def _line_measures(
    model: TrainedModel, examples: list[Example], max_new_tokens: int, form: Format
) -> dict[str, Any]:
    texts = [text.split("\n")[0] for text in fill(model, examples, max_new_tokens, LINE, form)]
    exact = [text.rstrip() == e.middle.rstrip() for text, e in zip(texts, examples)]
    losses = token_losses(model, examples[:LOSS_EXAMPLES], form.spm)
    samples = [{**e._asdict(), "generated": text} for e, text in zip(examples[:SAMPLES], texts)]
    return {
        "exact": sum(exact) / len(examples),
        "examples": len(examples),
        "loss": float(np.concatenate(losses).mean()),
        "loss_examples": len(losses),
        "samples": samples,
    }


def _measures(
    model: TrainedModel, examples: list[Example], max_new_tokens: int, kind: Kind, form: Format
) -> Measures:
    texts = fill(model, examples, max_new_tokens, kind, form)
    middles = [e.middle.rstrip() for e in examples]
    losses = middle_losses(model, examples, form)
    return {
        "exact": [float(text.rstrip() == middle) for text, middle in zip(texts, middles)],
        "right": [_right(text, middle) for text, middle in zip(texts, middles)],
        "loss": [loss / len(e.middle) for loss, e in zip(losses, examples)],
    }


def _right(text: str, truth: str) -> float:
    """Returns the share of the characters of `truth` with which `text` begins."""
    count = 0
    for a, b in zip(text, truth):
        if a != b:
            break
        count += 1
    return count / len(truth)


def fill(
    model: TrainedModel, examples: list[Example], max_new_tokens: int, kind: Kind, form: Format
) -> list[str]:
    """Generates middles greedily, in equal batches whose caches hold about CACHED_TOKENS."""
    from codellama_jax.generation.infill import infill
    from codellama_jax.generation.sampler import Sampling

    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    documents = [infill_ids(model.tokenizer, *example, form.spm) for example in examples]
    tokens = max(map(len, documents)) + max_new_tokens
    batches = -(-len(examples) * tokens // CACHED_TOKENS)
    size = -(-len(examples) // batches)
    pairs = [(e.prefix, e.suffix) for e in examples]
    texts: list[str] = []
    for start in range(0, len(pairs), size):
        batch = pairs[start : start + size]
        stops, healing = kind.stop_strings, form.healing
        texts += infill(model, batch, sampling, form.spm, stops, healing=healing)
    return texts


def token_losses(model: TrainedModel, examples: Sequence[Example], spm: bool) -> list[np.ndarray]:
    """Returns -log p in nats of each token of the true middles after their prompts, EOT left out.

    The middle is encoded separately from the prefix.
    """
    from codellama_jax.generation.scoring import document_losses

    encode = model.tokenizer.encode
    prompts = [prompt_ids(model.tokenizer, e.prefix, e.suffix, spm) for e in examples]
    documents = []
    for prompt, example in zip(prompts, examples):
        documents.append([*prompt, *encode(example.middle, leading_space=False)])
    losses = document_losses(model, documents)
    return [losses_T[len(prompt) - 1 :] for losses_T, prompt in zip(losses, prompts)]


def middle_losses(model: TrainedModel, examples: Sequence[Example], form: Format) -> list[float]:
    """Returns -log p in nats of each true middle after its prompt.

    With healing, -log p(prefix and middle encoded as one text) + log p(any tokens whose text begins
    with the prefix).
    """
    if not form.healing:
        return [float(losses.sum()) for losses in token_losses(model, examples, form.spm)]
    from codellama_jax.generation.healing import heal
    from codellama_jax.generation.scoring import document_losses

    tokenizer = model.tokenizer
    prompts = [prompt_ids(tokenizer, e.prefix, e.suffix, form.spm) for e in examples]
    joined = [infill_ids(tokenizer, *e, spm=True)[:-1] for e in examples]
    of_texts = [float(losses.sum()) for losses in document_losses(model, joined)]
    of_prompts = [float(losses.sum()) for losses in document_losses(model, prompts)]
    odds = [healed.log_odds for healed in heal(model, prompts)]
    return [text - prompt + odd for text, prompt, odd in zip(of_texts, of_prompts, odds)]


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
