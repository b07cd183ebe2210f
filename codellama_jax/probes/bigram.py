"""An interpolated bigram model of token ids: the loss that counting pairs of tokens reaches.

Interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3): the strongest count-based
smoothing of their study. On the quickstart's tokens it is ahead of Witten-Bell and of Jelinek-Mercer
with bucketed weights by up to 0.02 nats per token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from codellama_jax.config import Probe
from codellama_jax.errors import UserError
from codellama_jax.probes.subject import Batch, Subject

SMALLEST_DISCOUNT = 0.01  # keeps every probability positive where a tiny corpus has no rare pairs


@dataclass(frozen=True)
class Bigram(Probe, name="bigram"):
    """The validation loss of a bigram model of the tokens that the model was trained on.

    The report has it in the table of stages and beside the loss curves.
    """

    def measure(self, subject: Subject) -> dict[str, float]:
        model = fit(subject.training_rows(), subject.model.config.vocab_size)
        loss, tokens = model.evaluate(subject.validation_rows)
        return {"loss": loss, "tokens": tokens, "training_tokens": int(model.counts_V.sum())}


@dataclass(frozen=True)
class BigramModel:
    """p(token | history) = kept(history, token) / count(history) + backoff(history) p(token)."""

    keys: np.ndarray  # history x V + token of every pair seen, sorted
    kept: np.ndarray  # its count less the discount
    counts_V: np.ndarray  # of every history
    backoff_V: np.ndarray  # share of a history's mass that its discounts free; 1 for one never seen
    # From the number of different histories before a token, and the uniform distribution.
    unigram_V: np.ndarray

    def losses(self, histories: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Returns -log p(token | history) in nats; any shape."""
        keys = histories.astype(np.int64) * len(self.counts_V) + tokens
        found = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        kept = np.where(self.keys[found] == keys, self.kept[found], 0.0)
        return -np.log(
            kept / np.maximum(self.counts_V[histories], 1)
            + self.backoff_V[histories] * self.unigram_V[tokens]
        )

    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Returns the mean loss in nats over the tokens of packed rows, and their number.

        Padding is left out.
        """
        losses = np.concatenate([self.losses(*_pairs(batch)) for batch in batches])
        return float(losses.mean()), losses.size


def fit(batches: Iterable[Batch], vocab_size: int) -> BigramModel:
    """Counts the pairs (token, target) of packed rows, padding left out.

    No pair spans two documents. Raises UserError if there is no pair, as after 0 steps.
    """
    V = vocab_size
    pairs = [history.astype(np.int64) * V + token for history, token in map(_pairs, batches)]
    if not sum(map(len, pairs)):
        raise UserError("the model was trained on no token that a bigram model could count")
    keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
    histories, tokens = np.divmod(keys, V)
    counts_V = np.bincount(histories, counts, V)
    kept = counts - _discounts(counts)
    kept_V = np.bincount(histories, kept, V)
    backoff_V = np.where(counts_V > 0, 1 - kept_V / np.maximum(counts_V, 1), 1.0)
    return BigramModel(keys, kept, counts_V, backoff_V, _unigram(np.bincount(tokens, minlength=V)))


def _unigram(continuations_V: np.ndarray) -> np.ndarray:
    """Returns p(token) from how many different histories each token follows.

    It is discounted in favour of the uniform distribution.
    """
    kept_V = np.where(continuations_V > 0, continuations_V - _discounts(continuations_V), 0.0)
    total = continuations_V.sum()
    return kept_V / total + (1 - kept_V.sum() / total) / len(continuations_V)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Returns the discount of each count, from how many pairs occur 1 to 4 times.

    It is one number for 1, one for 2, and one for 3 and more.
    """
    n1, n2, n3, n4 = (max(int(np.sum(counts == n)), 1) for n in range(1, 5))
    y = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return discounts.clip([0] + [SMALLEST_DISCOUNT] * 3, [0, 1, 2, 3])[np.minimum(counts, 3)]


def _pairs(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    real = np.asarray(batch["weights"]) > 0
    return np.asarray(batch["tokens"])[real], np.asarray(batch["targets"])[real]
