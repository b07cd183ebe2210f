"""Drafts of the next tokens, which the model checks in one call (speculative decoding).

A draft never changes what is drawn. The draw at each position has its own PRNG key, so the model
draws at all positions of a draft at once and keeps its own tokens: as many as agree with the draft,
and the first that does not (`slots.verified`). This holds for greedy and for sampled tokens.

Leviathan et al. 2023 (arXiv:2211.17192) accept a draft by a random test instead, which keeps the
distribution but not the tokens. Prompt lookup, without a draft model, is Saxena's (2023): code
repeats names and lines of the prompt. `draft_model.py` drafts with a smaller model.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from codellama_jax.generation.requests import Running

LONGEST_MATCH, SHORTEST_MATCH = 3, 2  # tokens at the end of the text that occur before


def looked_up(ids: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` tokens that followed the last tokens of a text where they occur before.

    The longest match counts, and of equal ones the latest. Returns none without a match.

    Args:
      ids: the text, prompt and new ids, int32.
      count: tokens.
    """
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        # A text of `length` tokens is the match itself: nothing occurs before.
        if len(ids) <= length:
            continue
        end = ids[-length:]
        # Ends of occurrences before the last one.
        matches = np.ones(len(ids) - length, bool)
        for index in range(length):
            matches &= ids[index : len(ids) - length + index] == end[index]
        starts = np.flatnonzero(matches)
        if starts.size:
            after = int(starts[-1]) + length
            # Where the text ends before, it is taken to repeat itself further.
            return np.resize(ids[after:], count)
    return ids[:0]


class Drafter(abc.ABC):
    """Drafts tokens, and counts how many the model accepted.

    Attributes:
      length: tokens of a draft, at most.
      drafted, accepted: tokens of all drafts, and how many of them the model drew.
      steps, drawn: sequences times calls that checked drafts, and the tokens that they drew.
    """

    # Why a text may have had no draft at all.
    none_because = ""

    def __init__(self, length: int) -> None:
        """Drafts up to `length` tokens at once."""
        self.length = length
        self.drafted, self.accepted, self.steps, self.drawn = 0, 0, 0, 0

    @abc.abstractmethod
    def drafts(self, sequences: Sequence[Running], slots: int) -> list[np.ndarray]:
        """Returns for each sequence up to `length` tokens, int32, that may follow its new ids.

        `slots`: the most sequences that the caller's engine decodes at once.
        """

    def note(self, drafted: int, drawn: int) -> None:
        """Counts the draft of one sequence, and the tokens that were drawn with it."""
        self.drafted += drafted
        # One drawn token is always the model's own; only those before it agreed with the draft.
        self.accepted += min(drafted, drawn - 1)
        self.steps += 1
        self.drawn += drawn

    def report(self) -> str:
        """Returns the share of tokens that were accepted, as a line."""
        if not self.drafted:
            return f"drafts: none, since {self.none_because}"
        share = f"{self.accepted:,} of {self.drafted:,} tokens accepted"
        per_step = f"{self.drawn / self.steps:.2f} tokens per step with drafts"
        return f"drafts: {share} ({self.accepted / self.drafted:.0%}), {per_step}"


class PromptLookup(Drafter):
    """Drafts what followed the last tokens of a text where they occur before."""

    none_because = "no text repeated itself"

    def drafts(self, sequences: Sequence[Running], slots: int) -> list[np.ndarray]:
        """Returns the drafts of sequences; see `Drafter.drafts`."""
        return [looked_up(sequence.text(), self.length) for sequence in sequences]
