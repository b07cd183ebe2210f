"""Infilling of held-out code, by prompt format and by kind of middle (Code Llama, section 3.2).

In the paper's tables 6 and 14 a middle is right if it is the same line or if tests pass. Here it
must be the same text, which a toy model seldom generates, so there are also graded measures.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
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
    from codellama_jax.tokenizers.base import Tokenizer

CACHED_TOKENS = 65_536  # tokens in the KV cache of a batch; bounds the memory
LOSS_EXAMPLES = 128  # enough for a mean loss; the share of exact lines varies more and needs all
SAMPLES = 8  # lines that are kept with the generated text, for the report


class Kind(NamedTuple):
    """A kind of middle."""

    splits: Splits  # removes such middles from a text
    stop_strings: tuple[str, ...] = ()  # end the generation of one
    # Whether the prefix may end inside a token. At the end of a line it can only with pieces that
    # join lines, see `_joins_lines`.
    healing: bool = False


class Format(NamedTuple):
    """A format of the prompt."""

    spm: bool  # suffix-prefix-middle order
    healing: bool = False  # token healing: generates the last tokens of the prefix again


LINE = Kind(single_lines, ("\n",))
KINDS = {
    "single-line": LINE,
    "multi-line": Kind(several_lines),
    "random-span": Kind(random_spans, healing=True),
}
FORMATS = {"PSM": Format(False), "SPM": Format(True), "SPM, healed": Format(True, healing=True)}

Measures = dict[str, list[float]]
# Measures of `InfillingKinds` that are shares, with their headings in the report.
SHARES = {
    "exact": "exact",
    "right": "right at first",
    "first": "first token",
    "tokens": "tokens",
}


@dataclass(frozen=True)
class Infilling(Probe, name="infilling"):
    """Single lines, filled in greedily in PSM and SPM format, up to the first newline.

    The measures of each format are:

    - `exact`: share of lines that equal the true line except for trailing spaces.
    - `examples`: number of lines.
    - `loss`: nats per token of the true line, over the first `loss_examples` lines.
    - `samples`: the first lines with the generated text.
    """

    title = "Infilling of single lines"

    examples: Examples
    max_new_tokens: Tokens = 64

    def measure(self, subject: Subject) -> dict[str, dict[str, Any]]:
        """Returns the measures by format. Raises UserError if there is no line to fill in."""
        # The same examples in both orders, so that only the prompt differs.
        examples = lines_to_fill(subject, self.examples, self.max_new_tokens)
        answers = {}
        for name in ("PSM", "SPM"):
            prompt_format = FORMATS[name]
            answers[name] = _line_measures(
                subject.model, examples, self.max_new_tokens, prompt_format
            )
        return answers

    def show(self, page: Page, answers: Sequence[tuple[StageResult, Any]]) -> None:
        """Adds a table of the stages, the better format, and the first lines of the last stage."""
        last, formats = answers[-1]
        headings = ["after stage"]
        for name in formats:
            headings += [f"{name} exact", f"{name} loss"]
        rows = []
        for result, answer in answers:
            row = [result.name]
            for measures in answer.values():
                row += [_exact(measures), f"{measures['loss']:.3f}"]
            rows.append(row)
        page.table(headings, rows)
        first_format, *_ = formats.values()
        loss_examples = first_format["loss_examples"]  # the same in every format
        page.note(
            "Lines of held-out documents that fit the stage's sequences, generated greedily from"
            " the text before and after them. PSM: prefix, suffix, middle; SPM: suffix, prefix,"
            " middle. Exact: the same line except for trailing spaces. Loss: nats per token of the"
            f" true line, over the first {loss_examples}."
        )
        page.note(_better_format(last.name, formats))
        page.heading(f"The first of these lines, after {last.name}", 3)
        samples = zip(*(measures["samples"] for measures in formats.values()))
        page.table(("true line", *formats), [_line_cells(sample) for sample in samples])


@dataclass(frozen=True)
class InfillingKinds(Probe, name="infilling_kinds"):
    """Middles of several kinds, filled in greedily in every format.

    The measures of each kind and format have one number per example:

    - `exact`: 1.0 if the text equals the true middle except for trailing spaces, otherwise 0.0.
    - `right`: share of the characters of the true middle before the first wrong one.
    - `first`: 1.0 if the first token of the true middle is the most likely one, otherwise 0.0.
    - `tokens`: share of the tokens of the true middle that are the most likely ones after the true
      tokens before them.
    - `loss`: nats per character of the true middle.

    With healing the tokens of the middle are not known in advance: it has no `first` and `tokens`.
    Lines are healed only where a token may join two of them.
    """

    title = "Infilling by kind of middle"

    kinds: tuple[Literal["single-line", "multi-line", "random-span"], ...]
    examples: Examples = 128  # of each kind
    max_new_tokens: Tokens = 64

    def measure(self, subject: Subject) -> dict[str, dict[str, Measures]]:
        """Returns the measures by kind and format. Raises UserError for a kind without example."""
        answers: dict[str, dict[str, Measures]] = {}
        limits = (self.examples, subject.seq_len, self.max_new_tokens, subject.seed)
        tokenizer, texts = subject.model.tokenizer, subject.documents
        joins_lines = _joins_lines(tokenizer)
        for name in self.kinds:
            kind = KINDS[name]
            examples = held_out_examples(kind.splits, tokenizer, texts, *limits)
            if not examples:
                fits = f"no held-out document that fits {subject.seq_len} tokens"
                raise UserError(f"{fits} has a {name} middle of at most {self.max_new_tokens}")
            answers[name] = {}
            for format_name, prompt_format in FORMATS.items():
                # Healing changes nothing for a kind whose prefix ends at a token boundary.
                if kind.healing or joins_lines or not prompt_format.healing:
                    answers[name][format_name] = _measures(
                        subject.model, examples, self.max_new_tokens, kind, prompt_format
                    )
        return answers

    def show(self, page: Page, answers: Sequence[tuple[StageResult, Any]]) -> None:
        """Adds a table with a line for each kind, format and stage."""
        rows = []
        _, kinds = answers[-1]
        for kind, formats in kinds.items():
            for name in formats:
                for result, answer in answers:
                    means = {m: fmean(values) for m, values in answer[kind][name].items()}
                    shares = [_percent(means.get(measure)) for measure in SHARES]
                    rows.append((kind, name, result.name, *shares, f"{means['loss']:.3f}"))
        page.table(("middle", "prompted in", "after stage", *SHARES.values(), "loss"), rows)
        page.note(
            "Held-out documents that fit the stage's sequences, filled in greedily."
            " Exact: the same text except for trailing spaces. Right at first: share of the true"
            " middle before the first wrong character. First token, tokens: share of those of the"
            " true middle that are the most likely ones, given the true tokens before them. Loss:"
            " nats per character of the true middle."
        )


def _joins_lines(tokenizer: Tokenizer) -> bool:
    """Returns whether a piece continues after a newline, as a line's indentation does in GPT-2's.

    The pieces of SentencePiece end with their line: it reads lines.
    """
    for piece in tokenizer.text_ids:
        if "\n" in tokenizer.decode([piece], leading_space=False)[:-1]:
            return True
    return False


def _percent(share: float | None) -> str:
    """Returns a cell with a share, "" for one that was not measured."""
    return "" if share is None else f"{share:.1%}"


def _line_measures(
    model: TrainedModel, examples: list[Example], max_new_tokens: int, prompt_format: Format
) -> dict[str, Any]:
    """Returns the measures of `Infilling` in one format."""
    generated = fill(model, examples, max_new_tokens, LINE, prompt_format)
    # The text may continue after the newline at which generation stopped.
    lines = [text.split("\n")[0] for text in generated]
    exact = 0
    samples: list[dict[str, str]] = []
    for line, example in zip(lines, examples):
        exact += line.rstrip() == example.middle.rstrip()
        if len(samples) < SAMPLES:
            samples.append({**example._asdict(), "generated": line})
    losses = token_losses(model, examples[:LOSS_EXAMPLES], prompt_format.spm)
    return {
        "exact": exact / len(examples),
        "examples": len(examples),
        "loss": float(np.concatenate(losses).mean()),
        "loss_examples": len(losses),
        "samples": samples,
    }


def _measures(
    model: TrainedModel,
    examples: list[Example],
    max_new_tokens: int,
    kind: Kind,
    prompt_format: Format,
) -> Measures:
    """Returns the measures of `InfillingKinds` for one kind and format."""
    texts = fill(model, examples, max_new_tokens, kind, prompt_format)
    losses = middle_losses(model, examples, prompt_format)
    measures: Measures = {"exact": [], "right": [], "loss": []}
    for text, example, loss in zip(texts, examples, losses):
        # Trailing spaces are invisible and mostly accidental, so that they never decide.
        middle = example.middle.rstrip()
        measures["exact"].append(float(text.rstrip() == middle))
        measures["right"].append(_share_of_prefix(text, middle))
        measures["loss"].append(loss / len(example.middle))
    # With healing the model writes the end of the prefix again, in tokens that it chooses itself.
    if not prompt_format.healing:
        choices = token_choices(model, examples, prompt_format.spm)
        measures["first"] = [float(chosen[0]) for chosen in choices]
        measures["tokens"] = [float(chosen.mean()) for chosen in choices]
    return measures


def _share_of_prefix(text: str, truth: str) -> float:
    """Returns the length of the common prefix as a share of the length of `truth`."""
    count = 0
    for character, true_character in zip(text, truth):
        if character != true_character:
            break
        count += 1
    return count / len(truth)


def fill(
    model: TrainedModel,
    examples: list[Example],
    max_new_tokens: int,
    kind: Kind,
    prompt_format: Format,
) -> list[str]:
    """Generates the middles of examples greedily.

    Args:
      model: the model.
      examples: the documents.
      max_new_tokens: the maximum number of tokens of a middle.
      kind: gives the strings that end a middle.
      prompt_format: the order, and whether tokens are healed.
    """
    from codellama_jax.generation.infill import infill
    from codellama_jax.generation.settings import Sampling

    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    spm, healing = prompt_format.spm, prompt_format.healing
    documents = [infill_ids(model.tokenizer, *example, spm) for example in examples]
    # Batches of equal size, so that generation is compiled for one shape (and one remainder).
    tokens = max(map(len, documents)) + max_new_tokens
    batches = math.ceil(len(examples) * tokens / CACHED_TOKENS)
    size = math.ceil(len(examples) / batches)
    pairs = [(example.prefix, example.suffix) for example in examples]
    texts: list[str] = []
    for start in range(0, len(pairs), size):
        batch = pairs[start : start + size]
        texts += infill(model, batch, sampling, spm, kind.stop_strings, healing=healing)
    return texts


def token_losses(model: TrainedModel, examples: Sequence[Example], spm: bool) -> list[np.ndarray]:
    """Returns -log p of each token of the true middles, given their prompts, in nats.

    There is one array [tokens] per example, without EOT. The middle is encoded separately from the
    prefix, as a model generates it.
    """
    from codellama_jax.generation.scoring import document_losses

    prompts, middles = _prompts(model, examples, spm), _middles(model, examples)
    # One forward pass over prompt and middle gives the losses of all tokens of the middle.
    documents = [[*prompt, *middle] for prompt, middle in zip(prompts, middles)]
    losses = document_losses(model, documents)
    # losses_T[i] is the loss of token i + 1: that of the middle's first is at len(prompt) - 1.
    return [losses_T[len(prompt) - 1 :] for losses_T, prompt in zip(losses, prompts)]


def token_choices(model: TrainedModel, examples: Sequence[Example], spm: bool) -> list[np.ndarray]:
    """Returns whether each token of the true middles is the most likely one after those before it.

    There is one array bool [tokens] per example, of the tokens of `token_losses`.
    """
    from codellama_jax.generation.scoring import last_choices

    prompts, middles = _prompts(model, examples, spm), _middles(model, examples)
    documents = [[*prompt, *middle] for prompt, middle in zip(prompts, middles)]
    choices = last_choices(model, documents, max(map(len, middles)))
    return [chosen[-len(middle) :] for chosen, middle in zip(choices, middles)]


def _middles(model: TrainedModel, examples: Sequence[Example]) -> list[list[int]]:
    return [model.tokenizer.encode(e.middle, leading_space=False) for e in examples]


def _prompts(model: TrainedModel, examples: Sequence[Example], spm: bool) -> list[list[int]]:
    return [prompt_ids(model.tokenizer, e.prefix, e.suffix, spm) for e in examples]


def middle_losses(
    model: TrainedModel, examples: Sequence[Example], prompt_format: Format
) -> list[float]:
    """Returns -log p of each true middle, given its prompt, in nats.

    With healing it is -log p(tokens of prefix + middle) + log p(all token sequences whose text
    starts with the prefix).
    """
    spm = prompt_format.spm
    if not prompt_format.healing:
        return [float(losses.sum()) for losses in token_losses(model, examples, spm)]
    from codellama_jax.generation.healing import heal
    from codellama_jax.generation.scoring import document_losses

    prompts = _prompts(model, examples, spm)
    # In SPM order infill_ids encodes prefix and middle as one text. EOT is not part of the middle.
    documents = [infill_ids(model.tokenizer, *example, spm=True)[:-1] for example in examples]
    losses = []
    for document_T, prompt_T, healed in zip(
        document_losses(model, documents), document_losses(model, prompts), heal(model, prompts)
    ):
        # log_odds: log p of all sequences that start with the prefix, minus that of the prompt's
        # tokens.
        # The prompt's tokens are common to both terms and cancel, but for the last ones of the
        # prefix, which healing may replace.
        losses.append(float(document_T.sum()) - float(prompt_T.sum()) + healed.log_odds)
    return losses


def _exact(measures: Mapping[str, float]) -> str:
    exact, examples = measures["exact"], measures["examples"]
    return f"{exact:.1%} ({round(exact * examples)} of {examples})"


def _better_format(stage: str, formats: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a sentence on the format with more exact lines, or if equal with the lower loss."""

    def quality(name: str) -> tuple[float, float]:
        return formats[name]["exact"], -formats[name]["loss"]

    best = max(formats, key=quality)
    return f"After {stage} the better format, by exact lines and then by loss, is {best}."


def _line_cells(samples: Sequence[Mapping[str, str]]) -> list[Code]:
    """Returns the cells of the true line and of the generated lines, exact ones with a tick.

    Indentation that all lines have in common is left out.
    """
    truth = samples[0]["middle"]
    generated = [sample["generated"] for sample in samples]
    # Dedented together: the lines of a row keep their differences in indentation.
    lines = textwrap.dedent("\n".join([truth, *generated])).split("\n")
    cells = [Code(lines[0])]
    for line, text in zip(lines[1:], generated):
        is_exact = text.rstrip() == truth.rstrip()
        cells.append(Code(f"{line}  ✓" if is_exact else line))
    return cells
