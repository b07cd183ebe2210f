"""Token healing: a prompt that may end inside a token is backed up, and the first new token must go on with the characters removed.

A model never saw `enu` before `merate`: where `enumerate` is one token, its text never stops after `enu` (Code Llama, appendix on
infilling, advises healing for such prompts in SPM). How far to back up is decided by the model: each number of last tokens, whose
text some piece extends, is weighed by the probability that such a piece stands there against that of the tokens removed.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codellama_jax.generation.scoring import last_logits
from codellama_jax.models.trained import TrainedModel
from codellama_jax.tokenizers.sentencepiece import Tokenizer
from codellama_jax.tokenizers.training import LONGEST_SPACES

MOST = LONGEST_SPACES - 1  # tokens backed up: a piece that extends them is longer by a character


class Healed(NamedTuple):
    """A prompt to go on from, what was cut off its text, and the ids that may stand first (all where nothing was)."""

    ids: list[int]
    removed: str
    first: np.ndarray | None
    log_odds: float  # of all ways to go on with a text that begins as the prompt's, against a token border at its end


class Pieces:
    """The pieces of a tokenizer sorted by their text, so that those that begin alike stand together."""

    def __init__(self, tokenizer: Tokenizer):
        self.texts = [tokenizer.decode([i], leading_space=False) for i in range(tokenizer.pieces)]
        self.order = np.array(sorted(tokenizer.text_ids, key=self.texts.__getitem__))
        self.sorted = [self.texts[i] for i in self.order]

    def extending(self, text: str) -> np.ndarray:
        """Returns the ids whose text begins with this one and is longer."""
        return self.order[
            bisect.bisect_right(self.sorted, text) : bisect.bisect_left(
                self.sorted, text + chr(0x10FFFF)
            )
        ]


def heal(model: TrainedModel, prompts: Sequence[Sequence[int]]) -> list[Healed]:
    """Backs up each prompt of ids, whose last tokens are text, as far as the model finds most likely."""
    pieces = Pieces(model.tokenizer)
    logits_BMV = last_logits(model, prompts, MOST + 1)
    return [
        _most_likely(pieces, list(ids), logits_MV) for ids, logits_MV in zip(prompts, logits_BMV)
    ]


def _most_likely(pieces: Pieces, ids: list[int], logits_MV: np.ndarray) -> Healed:
    """logits_MV: of the token after all but the last m ids, for every m."""
    log_p_MV = logits_MV - np.logaddexp.reduce(logits_MV, axis=-1, keepdims=True)
    found, removed, taken = [(0.0, 0, "", None)], "", 0.0
    for m in range(1, min(MOST, len(ids) - 1) + 1):
        if ids[-m] >= len(pieces.texts):
            break
        removed, taken = pieces.texts[ids[-m]] + removed, taken + float(log_p_MV[m, ids[-m]])
        first = pieces.extending(removed)
        if len(first):
            found.append(
                (float(np.logaddexp.reduce(log_p_MV[m, first])) - taken, m, removed, first)
            )
    _, m, removed, first = max(found, key=lambda one: one[0])
    return Healed(
        ids[: len(ids) - m],
        removed,
        first,
        float(np.logaddexp.reduce([odds for odds, *_ in found])),
    )
