"""Middles taken out of held-out documents: a line, several lines or a random span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from codellama_jax.data.infilling import infill_ids
from codellama_jax.errors import UserError
from codellama_jax.probes.subject import Subject

if TYPE_CHECKING:
    from codellama_jax.tokenizers.sentencepiece import Tokenizer


class Example(NamedTuple):
    """A document around its middle.

    A middle of lines includes the indentation of the first and not the newline after the last.
    """

    prefix: str
    middle: str
    suffix: str


# Splits a text in up to that many ways.
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
    """Picks middles from documents that fit a sequence; the same ones for the same seed.

    Each document gives one, or a few where there are fewer documents than `count`.

    Args:
      splits: how a text is split.
      tokenizer: measures lengths.
      texts: held-out documents.
      count: number of examples, if there are as many.
      seq_len: tokens of the longest document, with its sentinels.
      max_new_tokens: tokens of the longest middle.
      seed: PRNG seed.
    """
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    share = -(-count // max(1, len(texts)))
    for index in rng.permutation(len(texts)):
        for example in splits(texts[index], rng, share):
            if _fits(tokenizer, example, seq_len, max_new_tokens):
                examples.append(example)
        if len(examples) >= count:
            break
    return examples[:count]


def lines_to_fill(subject: Subject, count: int, max_new_tokens: int) -> list[Example]:
    """Returns up to `count` single lines of the subject's documents.

    Raises UserError for a model without infilling sentinels, and if there is no line.
    """
    model = subject.model
    if model.config.vocab_size < model.tokenizer.vocab_size:
        raise UserError("this model's vocabulary has no infilling sentinels")
    limits = (count, subject.seq_len, max_new_tokens, subject.seed)
    examples = held_out_examples(single_lines, model.tokenizer, subject.documents, *limits)
    if not examples:
        fits = f"no held-out document that fits {subject.seq_len} tokens"
        raise UserError(f"{fits} has a line to fill in")
    return examples


def single_lines(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Takes out lines that are not blank, and neither the first nor the last of the text."""
    lines, inner = _inner_lines(text)
    return [_example(lines, i, i + 1) for i in rng.permutation(inner)[:count].astype(int)]


def several_lines(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Takes out two or more consecutive lines that neither begin nor end with a blank one."""
    lines, inner = _inner_lines(text)
    pairs = [(i, j + 1) for i in inner for j in inner if i < j]
    return [_example(lines, *pairs[n]) for n in rng.permutation(len(pairs))[:count]]


def random_spans(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Takes out spans between two characters drawn uniformly, as in training.

    There is text before and after each.
    """
    pairs = [sorted(rng.integers(1, max(2, len(text)), 2)) for _ in range(count)]
    return [Example(text[:i], text[i:j], text[j:]) for i, j in pairs if text[i:j].strip()]


def _inner_lines(text: str) -> tuple[list[str], list[int]]:
    """Returns all lines, and which are not blank, nor the first nor the last."""
    lines = text.split("\n")
    return lines, [i for i in range(1, len(lines) - 1) if lines[i].strip()]


def _example(lines: list[str], i: int, j: int) -> Example:
    return Example(
        "".join(f"{line}\n" for line in lines[:i]),
        "\n".join(lines[i:j]),
        "".join(f"\n{line}" for line in lines[j:]),
    )


def _fits(tokenizer: Tokenizer, example: Example, seq_len: int, max_new_tokens: int) -> bool:
    """Returns whether the document fits a sequence in either format, and the middle its limit."""
    middle = len(tokenizer.encode(example.middle, leading_space=False))
    document = max(len(infill_ids(tokenizer, *example, spm)) for spm in (False, True))
    return middle <= max_new_tokens and document <= seq_len + 1
