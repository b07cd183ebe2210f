"""Token healing: backs a prompt up that may end inside a token.

A model never saw `enu` before `merate`: where `enumerate` is one token, no training text has a
token border after `enu`. The prompt's last tokens are removed, and the first new token must begin
with their characters. Code Llama's appendix on infilling advises it for such prompts in SPM order.

The model decides how many tokens to remove. For each number whose text is the beginning of a longer
piece, the probability of all such pieces is compared with that of the tokens removed.

Dims: B prompts, M numbers of tokens removed, V vocabulary entries.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codellama_jax.generation.scoring import last_logits
from codellama_jax.models.trained import TrainedModel
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.training import LONGEST_SPACES

# A piece that extends the tokens removed is at least one character longer than they are.
MAX_REMOVED = LONGEST_SPACES - 1


class Healed(NamedTuple):
    """A backed-up prompt.

    Attributes:
      ids: the prompt to continue.
      removed: the text of the tokens removed.
      first: the ids that may come first; None for all, where nothing was removed.
      log_odds: of all ways to continue a text that begins as the prompt's, against a token border
        at its end, in nats.
    """

    ids: list[int]
    removed: str
    first: np.ndarray | None
    log_odds: float


class Backup(NamedTuple):
    """A number of tokens to remove, and the odds of a longer piece there against those tokens."""

    log_odds: float
    tokens: int
    text: str
    extending: np.ndarray | None


class Pieces:
    """The pieces of a tokenizer sorted by text, which puts equal beginnings side by side."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Decodes and sorts all pieces of text."""
        self.texts = [tokenizer.decode([i], leading_space=False) for i in range(tokenizer.pieces)]
        self.text_ids = frozenset(tokenizer.text_ids)
        self.order = np.array(sorted(self.text_ids, key=self.texts.__getitem__))
        self.sorted = [self.texts[i] for i in self.order]

    def extending(self, text: str) -> np.ndarray:
        """Returns the ids whose text begins with this one and is longer."""
        # Every text with this beginning sorts before the beginning followed by the last character.
        start = bisect.bisect_right(self.sorted, text)
        end = bisect.bisect_left(self.sorted, text + chr(0x10FFFF))
        return self.order[start:end]


def heal(model: TrainedModel, prompts: Sequence[Sequence[int]]) -> list[Healed]:
    """Backs up each prompt of ids as far as the model finds most likely.

    The last tokens of the prompts must be text.
    """
    pieces = Pieces(model.tokenizer)
    # One forward pass gives the distributions at all borders: removing m tokens needs the logits
    # before them, which attend to nothing that is removed.
    logits_BMV = last_logits(model, prompts, MAX_REMOVED + 1)
    healed = []
    for ids, logits_MV in zip(prompts, logits_BMV):
        healed.append(_most_likely(pieces, list(ids), logits_MV))
    return healed


def _most_likely(pieces: Pieces, ids: list[int], logits_MV: np.ndarray) -> Healed:
    """Backs up one prompt. logits_MV: after all but the last m ids, for every m."""
    log_p_MV = logits_MV - np.logaddexp.reduce(logits_MV, axis=-1, keepdims=True)
    # Removing nothing has odds of one against itself.
    backups = [Backup(0.0, 0, "", None)]
    text, log_p_removed = "", 0.0
    for m in range(1, min(MAX_REMOVED, len(ids) - 1) + 1):
        # A sentinel has no characters to give back, wherever in the vocabulary it is: StarCoder's
        # are among the pieces. A part of a character has none either.
        if ids[-m] not in pieces.text_ids:
            break
        text = pieces.texts[ids[-m]] + text
        log_p_removed += float(log_p_MV[m, ids[-m]])
        extending = pieces.extending(text)
        if len(extending):
            log_p_extending = float(np.logaddexp.reduce(log_p_MV[m, extending]))
            backups.append(Backup(log_p_extending - log_p_removed, m, text, extending))
    best = max(backups, key=operator.attrgetter("log_odds"))
    total = float(np.logaddexp.reduce([backup.log_odds for backup in backups]))
    return Healed(ids[: len(ids) - best.tokens], best.text, best.extending, total)
