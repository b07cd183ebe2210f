"""Infilling examples from held-out documents: a line, several lines or a random span is removed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from codellama_jax.data.infilling import infill_ids
from codellama_jax.errors import UserError
from codellama_jax.probes.subject import Subject

if TYPE_CHECKING:
    from codellama_jax.tokenizers.base import Tokenizer


class Example(NamedTuple):
    """A document, split into the middle to fill in and the text before and after it.

    A middle of lines includes the indentation of the first line, but not the newline at its end.
    """

    prefix: str
    middle: str
    suffix: str


# Returns up to that many different splits of a text.
Splits = Callable[[str, np.random.Generator, int], list[Example]]


def held_out_examples(
    splits: Splits,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    count: int,
    seq_len: int,
    max_new_tokens: int,
    seed: int,
) -> list[Example]:
    """Returns examples from documents that fit a sequence; the same ones for the same seed.

    Each document gives one example, or several if there are fewer documents than `count`.

    Args:
      splits: returns splits of a text.
      tokenizer: measures lengths.
      texts: held-out documents.
      count: the number of examples, if the documents have so many.
      seq_len: the maximum number of tokens of a document with its sentinels.
      max_new_tokens: the maximum number of tokens of a middle.
      seed: the random seed.
    """
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    # A small corpus has fewer documents than examples are needed; then each gives several.
    per_document = math.ceil(count / max(1, len(texts)))
    # A random order, so that the examples are not all of the first folder of the corpus.
    for index in rng.permutation(len(texts)):
        # One that does not fit is left out, not truncated: a truncated middle has no end to find.
        for example in splits(texts[index], rng, per_document):
            if _fits(tokenizer, example, seq_len, max_new_tokens):
                examples.append(example)
        if len(examples) >= count:
            break
    return examples[:count]


def lines_to_fill(subject: Subject, count: int, max_new_tokens: int) -> list[Example]:
    """Returns up to `count` examples whose middle is a line of the subject's documents.

    Raises UserError for a model without infilling sentinels, and if no document has such a line.
    """
    model = subject.model
    # A tokenizer always has ids for the sentinels, but a model may have no embedding for them.
    if model.config.vocab_size < model.tokenizer.vocab_size:
        raise UserError("this model's vocabulary has no infilling sentinels")
    limits = (count, subject.seq_len, max_new_tokens, subject.seed)
    examples = held_out_examples(single_lines, model.tokenizer, subject.documents, *limits)
    if not examples:
        fits = f"no held-out document that fits {subject.seq_len} tokens"
        raise UserError(f"{fits} has a line to fill in")
    return examples


def single_lines(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Removes one line that is not blank and neither the first nor the last, `count` times."""
    lines, inner = _inner_lines(text)
    chosen = rng.permutation(inner)[:count].astype(int)  # an empty permutation is of floats
    return [_example(lines, i, i + 1) for i in chosen]


def several_lines(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Removes two or more consecutive lines whose first and last are not blank, `count` times."""
    lines, inner = _inner_lines(text)
    ranges = [(first, last + 1) for first in inner for last in inner if first < last]
    return [_example(lines, *ranges[i]) for i in rng.permutation(len(ranges))[:count]]


def random_spans(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Removes the text between two positions drawn uniformly, as in training, `count` times.

    Unlike in training, prefix and suffix are not empty. A blank middle is left out.
    """
    examples = []
    for _ in range(count):
        first, end = sorted(rng.integers(1, max(2, len(text)), 2))
        if text[first:end].strip():
            examples.append(Example(text[:first], text[first:end], text[end:]))
    return examples


def _inner_lines(text: str) -> tuple[list[str], list[int]]:
    """Returns all lines, and the indices of those that are neither blank, nor first, nor last."""
    lines = text.split("\n")
    return lines, [i for i in range(1, len(lines) - 1) if lines[i].strip()]


def _example(lines: list[str], first: int, end: int) -> Example:
    """Returns the example whose middle is `lines[first:end]`."""
    # The empty strings add the newline after the prefix and the one before the suffix.
    prefix = "\n".join([*lines[:first], ""])
    suffix = "\n".join(["", *lines[end:]])
    return Example(prefix, "\n".join(lines[first:end]), suffix)


def _fits(tokenizer: Tokenizer, example: Example, seq_len: int, max_new_tokens: int) -> bool:
    """Returns whether the document fits a sequence in PSM and SPM, and the middle its limit."""
    middle_tokens = len(tokenizer.encode(example.middle, leading_space=False))
    document_tokens = max(len(infill_ids(tokenizer, *example, spm)) for spm in (False, True))
    # EOT, the last token of a document, is only a target: one more token than `seq_len` fits.
    return middle_tokens <= max_new_tokens and document_tokens <= seq_len + 1
