"""A bigram model of token ids: a baseline for the loss that needs no neural network.

Its smoothing is interpolated modified Kneser-Ney, the best count-based method in the study of Chen
and Goodman (1998, section 3). On the quickstart's tokens its loss is up to 0.02 nats per token
lower than that of Witten-Bell, and of Jelinek-Mercer with bucketed weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from codellama_jax.config import Probe
from codellama_jax.errors import UserError
from codellama_jax.probes.subject import Batch, Subject

SMALLEST_DISCOUNT = 0.01  # keeps all probabilities positive in a tiny corpus without rare pairs


@dataclass(frozen=True)
class Bigram(Probe, name="bigram"):
    """The validation loss of a bigram model, fitted to the tokens that the model was trained on.

    The report shows it in the table of stages and in the figure of the loss.
    """

    def measure(self, subject: Subject) -> dict[str, float]:
        """Returns `loss` in nats per token, and the numbers of validation and training tokens.

        Raises UserError if the model was trained on no token.
        """
        bigrams = fit(subject.training_rows(), subject.model.config.vocab_size)
        loss, tokens = bigrams.evaluate(subject.validation_rows)
        return {"loss": loss, "tokens": tokens, "training_tokens": int(bigrams.counts_V.sum())}


@dataclass(frozen=True)
class BigramModel:
    """Interpolates the discounted counts of pairs (history, token) with a unigram model.

    p(token | history) = kept(history, token) / count(history) + backoff(history) * unigram(token)
    """

    keys: np.ndarray  # int64, sorted: history * V + token of every pair that occurs
    kept: np.ndarray  # float64: the count of that pair minus its discount
    counts_V: np.ndarray  # occurrences of every history
    # The probability that the discounts of a history leave for the unigram model; 1 for a history
    # that does not occur.
    backoff_V: np.ndarray
    unigram_V: np.ndarray  # probabilities

    def losses(self, histories: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Returns -log p(token | history) in nats, with the shape of `histories` and `tokens`."""
        keys = histories.astype(np.int64) * len(self.counts_V) + tokens
        # searchsorted returns a position for a pair that does not occur, too: compare the keys.
        positions = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        kept = np.where(self.keys[positions] == keys, self.kept[positions], 0.0)
        pair_share = kept / np.maximum(self.counts_V[histories], 1)
        return -np.log(pair_share + self.backoff_V[histories] * self.unigram_V[tokens])

    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Returns the mean loss in nats per token of packed batches, and the number of tokens.

        Targets of weight 0, such as padding, do not count.
        """
        losses = np.concatenate([self.losses(*_pairs(batch)) for batch in batches])
        return float(losses.mean()), losses.size


def fit(batches: Iterable[Batch], vocab_size: int) -> BigramModel:
    """Fits a bigram model to the pairs (token, target) of packed batches, without padding.

    No pair spans two documents, because a target never does. Raises UserError if there is no pair,
    as after a stage of 0 steps.
    """
    V = vocab_size
    pairs = [history.astype(np.int64) * V + token for history, token in map(_pairs, batches)]
    if not sum(map(len, pairs)):
        raise UserError("the model was trained on no token that a bigram model could count")
    # One sort of all pairs: a V x V table would not fit the memory for a real vocabulary.
    keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
    histories, tokens = np.divmod(keys, V)
    counts_V = np.bincount(histories, counts, V)
    kept = counts - _discounts(counts)
    kept_V = np.bincount(histories, kept, V)
    # The rest to 1 is distributed by the unigram model, so that the probabilities sum to 1.
    backoff_V = np.where(counts_V > 0, 1 - kept_V / np.maximum(counts_V, 1), 1.0)
    # `tokens` has each pair once: this counts the different histories before each token.
    continuations_V = np.bincount(tokens, minlength=V)
    return BigramModel(keys, kept, counts_V, backoff_V, _unigram(continuations_V))


def _unigram(continuations_V: np.ndarray) -> np.ndarray:
    """Returns p(token), given the number of different histories that each token follows.

    That number, not the token's count, is the idea of Kneser and Ney: a token that is frequent only
    after one history is improbable after a new one. Discounts go to the uniform distribution.
    """
    # A token that follows no history has the discount 0, and gets its share of the rest below.
    kept_V = np.where(continuations_V > 0, continuations_V - _discounts(continuations_V), 0.0)
    total = continuations_V.sum()
    return kept_V / total + (1 - kept_V.sum() / total) / len(continuations_V)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Returns the discount of each count, which is one for 1, one for 2 and one for 3 or more.

    n1 to n4 are the numbers of pairs that occur 1 to 4 times, as in Chen and Goodman's formula.
    """
    # At least 1, because a tiny corpus may have no such pair.
    n1, n2, n3, n4 = (max(int(np.sum(counts == n)), 1) for n in range(1, 5))
    y = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    # A discount must be positive and at most the count, which the formula violates with few pairs.
    least = [0, SMALLEST_DISCOUNT, SMALLEST_DISCOUNT, SMALLEST_DISCOUNT]
    by_count = discounts.clip(least, [0, 1, 2, 3])
    return by_count[np.minimum(counts, 3)]


def _pairs(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens and the targets of a batch whose weight is positive, flattened."""
    counted = np.asarray(batch["weights"]) > 0
    return np.asarray(batch["tokens"])[counted], np.asarray(batch["targets"])[counted]
