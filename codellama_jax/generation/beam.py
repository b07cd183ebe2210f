"""Beam search: keeps the most likely beginnings of a continuation and extends all of them.

The score of a continuation is its log-probability divided by its length in tokens to the power of
`length_penalty`, as in transformers: 0 ranks by the log-probability of the text, 1 by the mean per
token, and above 0 longer texts gain. An id that ends a text counts as one of its tokens.

The rules are those of transformers with `early_stopping=False`, its default. Of the continuations
that end in a step, those among the `beams` most likely are kept, and the others are dropped. A
search ends when `beams` continuations have ended and the most likely beam, at its present length,
scores no higher than the worst of them. This is exact for a penalty of 0 and a heuristic otherwise.
One beam is greedy search: it ends where its most likely token ends it.

A wider search need not find a more likely text. The beginning of the greedy text may leave the
beam, and what replaced it may turn out worse. With a penalty of 0 the result is never less likely
than the greedy one for texts of up to two tokens, and the most likely text of all if the beam holds
all texts.

Each step on the device reorders the caches, reads one token per beam and returns the most likely
continuations; the host decides which of them end.

Dims: B prompts, N beams per prompt, S = B N sequences, K candidates per prompt, and those of
`models/decoding.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from codellama_jax.config import ModelConfig
from codellama_jax.generation.batches import (
    bucket,
    check_prompts,
    decoding_weights,
    fetched,
    first_mask,
    padded,
)
from codellama_jax.generation.memory import check_prompt_memory
from codellama_jax.generation.settings import Sampling
from codellama_jax.models import decoding
from codellama_jax.models.family import family_of
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import on_mesh_of

Values = jax.Array | np.ndarray


class Beam(NamedTuple):
    """A finished continuation.

    Attributes:
      ids: its new ids, without the id that ended it.
      score: its length-normalised log-probability.
      log_probability: of all its tokens, the one that ended it included, in nats.
    """

    ids: list[int]
    score: float
    log_probability: float


@struct.dataclass
class Candidates:
    """The most likely continuations by one token of each prompt's beams, best first."""

    log_p_BK: jax.Array  # of all new tokens, in nats; -inf for none
    parents_BK: jax.Array  # the beams that they extend
    tokens_BK: jax.Array


@struct.dataclass
class Beams:
    """The beams to extend next, by their parents in the last step."""

    log_p_BN: Values
    parents_BN: Values
    tokens_BN: Values
    positions_S: Values  # of the tokens


def beam_search(
    model: TrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int] = (),
    *,
    stop: Callable[[int, list[int]], bool] | None = None,
    vocab: int | None = None,
    first: Sequence[np.ndarray | None] | None = None,
) -> list[list[Beam]]:
    """Returns up to `sampling.beams` continuations of each prompt, best first.

    They do not depend on the other prompts. Raises UserError as `sampler.generate` does.

    Args:
      model: the model. Its decoding weights are prepared by the first call.
      prompts: ids of any lengths, BOS included where wanted.
      sampling: the number of beams, the length penalty and the most new tokens.
      stop_ids: each ends a continuation and is not returned.
      stop: called with the index of a prompt and all new ids, returns whether they suffice. It must
        be monotone: more ids never turn true into false.
      vocab: ids from here on, which pad the vocabulary, are never taken.
      first: for each prompt the ids that may come first; None for any.
    """
    if not prompts:
        return []
    check_prompts(model.config, prompts, sampling.max_new_tokens)
    config, beams = decoding.for_decoding(model.config), sampling.beams
    searches = []
    for index in range(len(prompts)):
        ends = functools.partial(stop, index) if stop else None
        searches.append(_Search(sampling, frozenset(stop_ids), ends))
    # Every stop id may end each beam once, so that as many candidates remain to be extended.
    count = max(2, 1 + len(stop_ids)) * beams
    # Beam search has no slots to refill: its prompts are one batch from the first token to the
    # last.
    with on_mesh_of(model.params, decoding.LOGICAL_AXES):
        tokens_BT, lengths_B = padded(
            prompts, jax.sharding.get_abstract_mesh().shape.get("data", 1)
        )
        weights = decoding_weights(model)
        # The batch may be longer than the prompts; its padding rows may begin with any token.
        mask_BV = first_mask(first, len(tokens_BT), config.vocab_size)
        limit = np.array(vocab or config.vocab_size, np.int32)
        static = config, beams, count, bucket(sampling.max_new_tokens), model.kv_cache
        start = (*static, weights, tokens_BT, lengths_B, limit, mask_BV)
        size = len(prompts), max(map(len, prompts)), beams
        check_prompt_memory(_start.lower(*start).compile(), *size)
        cache, candidates = _start(*start)
        # The device proposes and the host decides: which candidate ends depends on `stop`, which is
        # Python. The host's answer, the parents, reorders the caches in the next step.
        for step in range(sampling.max_new_tokens):
            chosen = _take(searches, candidates, len(tokens_BT), beams)
            if all(search.is_done for search in searches):
                break
            positions_S = np.repeat(lengths_B + step, beams)
            extend = (config, count, weights, cache, Beams(*chosen, positions_S), limit)
            # `_extend` has the same shapes in every step, so its memory is checked once.
            if step == 0:
                check_prompt_memory(_extend.lower(*extend).compile(), *size)
            cache, candidates = _extend(*extend)
    return [search.finished for search in searches]


class _Search:
    """The beams of one prompt.

    Attributes:
      finished: the best continuations that have ended, best first.
      is_done: whether no better one is looked for.
    """

    def __init__(
        self,
        sampling: Sampling,
        stop_ids: frozenset[int],
        stop: Callable[[list[int]], bool] | None,
    ) -> None:
        """Starts with one empty beam. `stop` returns whether ids suffice."""
        self.sampling, self.stop_ids, self.stop = sampling, stop_ids, stop
        self.running: list[list[int]] = [[]]
        self.finished: list[Beam] = []
        self.is_done = False

    def take(
        self, log_p_K: np.ndarray, parents_K: np.ndarray, tokens_K: np.ndarray
    ) -> tuple[list[float], list[int], list[int]]:
        """Takes the candidates of a step, best first.

        Returns the log-probabilities, parents and last tokens of the beams to extend, at most
        `beams` and none once the search is done.
        """
        # All running beams have the same length: one that ends leaves the list.
        beams, length = self.sampling.beams, 1 + len(self.running[0])
        kept: list[tuple[float, int, int]] = []
        for rank, log_p in enumerate(log_p_K.tolist()):
            # The candidates are sorted. Past the first `beams` ranks one can only become a running
            # beam, so the loop is over once those are complete.
            if log_p == -np.inf or (rank >= beams and len(kept) == beams):
                break
            parent, token = int(parents_K[rank]), int(tokens_K[rank])
            ids = [*self.running[parent], token]
            is_stop_id = token in self.stop_ids
            suffices = self.stop is not None and not is_stop_id and self.stop(ids)
            if not (is_stop_id or suffices or length == self.sampling.max_new_tokens):
                if len(kept) < beams:
                    kept.append((log_p, parent, token))
            # As in transformers, an end below rank `beams` is dropped even if its score would be
            # kept.
            elif rank < beams:
                score = log_p / length**self.sampling.length_penalty
                self.finished.append(Beam(ids[:-1] if is_stop_id else ids, score, log_p))
        # The sort is stable: of equal ones those that ended earlier stay.
        self.finished = sorted(self.finished, key=_negative_score)[:beams]
        self.is_done = not kept or self._is_decided(kept[0][0], length)
        if self.is_done:
            return [], [], []
        # The order of `running` is the order of the beams on the device, to which parents refer.
        self.running = [[*self.running[parent], token] for _, parent, token in kept]
        log_ps, parents, tokens = zip(*kept)
        return list(log_ps), list(parents), list(tokens)

    def _is_decided(self, log_p: float, length: int) -> bool:
        """Returns whether the most likely beam, of this log-probability, is not extended."""
        if len(self.finished) < self.sampling.beams:
            return False
        score = log_p / length**self.sampling.length_penalty
        return self.sampling.beams == 1 or score <= self.finished[-1].score


def _negative_score(beam: Beam) -> float:
    return -beam.score


def _take(
    searches: Sequence[_Search], candidates: Candidates, size: int, beams: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns log_p_BN, parents_BN and tokens_BN of the beams to extend in a batch of `size`.

    Beams of searches that are done, and of prompts that only pad the batch, have -inf.
    """
    log_p_BK, parents_BK, tokens_BK = (
        fetched(values)
        for values in (candidates.log_p_BK, candidates.parents_BK, candidates.tokens_BK)
    )
    # A beam of -inf stays -inf whatever follows, so that a search which is done yields no
    # candidates while the others of the batch continue.
    log_p_BN = np.full((size, beams), -np.inf, np.float32)
    parents_BN, tokens_BN = np.zeros((2, size, beams), np.int32)
    for row, search in enumerate(searches):
        if not search.is_done:
            log_ps, parents, tokens = search.take(log_p_BK[row], parents_BK[row], tokens_BK[row])
            log_p_BN[row, : len(log_ps)] = log_ps
            parents_BN[row, : len(log_ps)] = parents
            tokens_BN[row, : len(log_ps)] = tokens
    return log_p_BN, parents_BN, tokens_BN


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(
    config: ModelConfig,
    beams: int,
    count: int,
    new_slots: int,
    kv_cache: str,
    weights: Any,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    vocab: jax.Array,
    first_BV: jax.Array | None,
) -> tuple[decoding.Cache, Candidates]:
    """Reads the prompts; returns a cache of every beam, and the most likely first tokens.

    Args:
      config: the model, as `for_decoding` returns it.
      beams: N.
      count: K, fewer where the vocabulary is smaller.
      new_slots: room in the cache beyond the prompts, in tokens.
      kv_cache: how the cache is stored.
      weights: the decoding weights.
      tokens_BT, lengths_B: the prompts, as `padded` returns them.
      vocab: ids from here on are never taken.
      first_BV: which tokens may come first; None for all.
    """
    logits_BV, cache = decoding.prefill(config, weights, tokens_BT, lengths_B, new_slots, kv_cache)
    if first_BV is not None:
        logits_BV = jnp.where(first_BV, logits_BV, -jnp.inf)
    B = len(lengths_B)
    # The prompt is read once and its keys and values are repeated per beam.
    cache = _per_prompt(lambda slots_BTH: jnp.repeat(slots_BTH, beams, axis=0), config, cache, B)
    return cache, _candidates(logits_BV[:, None], jnp.zeros((B, 1)), count, vocab)


# The cache is donated: each step then writes into it in place instead of copying it.
@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _extend(
    config: ModelConfig,
    count: int,
    weights: Any,
    cache: decoding.Cache,
    beams: Beams,
    vocab: jax.Array,
) -> tuple[decoding.Cache, Candidates]:
    """Reads the last token of each beam; returns the cache with it, and the next candidates.

    Args:
      config: the model, as `for_decoding` returns it.
      count: K, fewer where the vocabulary is smaller.
      weights: the decoding weights.
      cache: of the parents.
      beams: the beams to extend.
      vocab: ids from here on are never taken.
    """
    B, N = beams.parents_BN.shape
    if N > 1:

        def reorder(slots_STH: jax.Array) -> jax.Array:
            # Only within each prompt's beams: a mesh that shards prompts moves nothing.
            slots_BNTH = slots_STH.reshape(B, N, *slots_STH.shape[1:])
            chosen_BNTH = jax.vmap(lambda slots, parents: slots[parents])(
                slots_BNTH, beams.parents_BN
            )
            return chosen_BNTH.reshape(slots_STH.shape)

        cache = _per_prompt(reorder, config, cache, B * N)
    tokens_S, positions_S = jnp.ravel(beams.tokens_BN), jnp.asarray(beams.positions_S)
    logits_SV, cache = family_of(config).step(config, weights, cache, tokens_S, positions_S)
    logits_BNV = logits_SV.reshape(B, N, -1)
    return cache, _candidates(logits_BNV, jnp.asarray(beams.log_p_BN), count, vocab)


def _per_prompt(
    change: Callable[[jax.Array], jax.Array],
    config: ModelConfig,
    cache: decoding.Cache,
    sequences: int,
) -> decoding.Cache:
    """Returns a cache after a change of the slots of each key head, (sequences, T, H).

    Args:
      change: the function of one key head's slots.
      config: the model.
      cache: keys and values.
      sequences: how many the cache holds.
    """

    def changed(slots_MTH: jax.Array) -> jax.Array:
        # The cache is stored head by head (M = K S), so the sequences of one head are consecutive
        # rows.
        by_head = slots_MTH.reshape(-1, sequences, *slots_MTH.shape[1:])
        return jax.vmap(change)(by_head).reshape(-1, *slots_MTH.shape[1:])

    return decoding.constrain(jax.tree.map(changed, cache), decoding.cache_spec(config))


def _candidates(
    logits_BNV: jax.Array, log_p_BN: jax.Array, count: int, vocab: jax.Array
) -> Candidates:
    """Returns the most likely continuations of beams by one token.

    Args:
      logits_BNV: of the next token of each beam.
      log_p_BN: of the beams.
      count: how many to return, fewer where the vocabulary is smaller.
      vocab: ids from here on are never taken.
    """
    # Replicated, because every host of a pod reads the candidates.
    logits_BNV = decoding.constrain(logits_BNV, decoding.REPLICATED)
    B, N, V = logits_BNV.shape
    # Embeddings that pad the vocabulary were never trained: their logits mean nothing.
    logits_BNV = jnp.where(jnp.arange(V)[None, None] < vocab, logits_BNV, -jnp.inf)
    total_BN1 = jax.nn.logsumexp(logits_BNV, axis=-1, keepdims=True)
    # Each beam's own best first, by their logits: with one beam the order is that of argmax.
    # Two small selections instead of one over N x V entries. No continuation is lost: each of the
    # best `count` over all beams is among the best `count` of the beam it extends.
    logits_BNK, tokens_BNK = jax.lax.top_k(logits_BNV, min(count, V))
    log_p_BNK = log_p_BN[:, :, None] + logits_BNK - total_BN1
    log_p_BK, places_BK = jax.lax.top_k(log_p_BNK.reshape(B, -1), min(count, N * min(count, V)))
    parents_BK = places_BK // tokens_BNK.shape[-1]
    tokens_BK = jnp.take_along_axis(tokens_BNK.reshape(B, -1), places_BK, axis=1)
    candidates = Candidates(log_p_BK, parents_BK, tokens_BK)
    return decoding.constrain(candidates, decoding.REPLICATED)
