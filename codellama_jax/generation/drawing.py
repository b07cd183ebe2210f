"""Draws tokens from logits, by the settings of each sequence.

Dims: B sequences, V vocabulary entries, X integers of a PRNG key, I stop ids.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from codellama_jax.generation.settings import Sampling
from codellama_jax.models import decoding

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    Values = jax.Array | np.ndarray

TOP_BIT = np.uint32(1 << 31)


@struct.dataclass
class Draws:
    """The settings of every sequence's draws. They are arrays: other values compile nothing new.

    A setting that no sequence uses is None, which saves its time at every step.
    """

    temperature: Values | None  # fp32 [B]; 0 takes the most likely token
    top_k: Values | None  # int32 [B]; 0 for all
    top_p: Values | None  # fp32 [B]; 1 for all
    seeds_BX: Values  # uint32: the data of each seed's PRNG key
    numbers_B: Values  # uint32, folded into the keys
    stop_ids_BI: Values  # int32
    ends_B: Values  # int32: a sequence ends with the token of this position
    vocab: Values  # int32: ids from here on are never drawn

    def repeated(self, count: int) -> Draws:
        """Returns the settings with those of each sequence `count` times, one after the other."""

        def repeat(values: Values) -> Values:
            return jnp.repeat(jnp.asarray(values), count, axis=0)

        return self._changed(repeat)

    def taken(self, slots_N: jax.Array) -> Draws:
        """Returns the settings of some sequences."""

        def take(values: Values) -> Values:
            return jnp.asarray(values)[slots_N]

        return self._changed(take)

    def _changed(self, change: Callable[[Values], Values]) -> Draws:
        # The limit of the vocabulary is one number for all sequences.
        changed = jax.tree.map(change, dataclasses.replace(self, vocab=cast(Any, None)))
        return dataclasses.replace(changed, vocab=self.vocab)


@functools.lru_cache(maxsize=1024)
def seed_data(seed: int) -> np.ndarray:
    """Returns the data of a seed's PRNG key, uint32 [X]."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def draw(logits_BV: jax.Array, draws: Draws, positions_B: jax.Array) -> jax.Array:
    """Draws the tokens of these positions, int32.

    A draw depends on the sequence's seed, number and position alone: on neither the other sequences
    nor the size of the chunks.
    """
    # Replicated, because every host of a pod reads the tokens.
    logits_BV = decoding.constrain(logits_BV, decoding.REPLICATED)
    # Embeddings that pad the vocabulary were never trained: their logits mean nothing.
    logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1])[None] < draws.vocab, logits_BV, -jnp.inf)

    if draws.temperature is None:
        tokens_B = most_likely(logits_BV)
    else:
        keys_B = jax.random.wrap_key_data(jnp.asarray(draws.seeds_BX))
        # Folding in the position gives every draw its key without a state that is carried along.
        for numbers_B in (draws.numbers_B, positions_B):
            keys_B = jax.vmap(jax.random.fold_in)(keys_B, numbers_B)
        tokens_B = sample(logits_BV, draws, keys_B)
    return decoding.constrain(tokens_B, decoding.REPLICATED)


def most_likely(logits_BV: jax.Array) -> jax.Array:
    """Returns the most likely token of each sequence, int32."""
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def sample(logits_BV: jax.Array, how: Sampling | Draws, keys_B: jax.Array) -> jax.Array:
    """Draws one token per sequence, int32.

    It inverts the distribution at one uniform number per sequence. The Gumbel trick needs a random
    number per vocabulary entry, which costs more than a decoding step of a small model.
    """
    assert how.temperature is not None
    temperature_B1 = _column(how.temperature, jnp.float32)
    # Temperature first: top-p then keeps a share of the distribution that is sampled.
    cooled_BV = logits_BV / jnp.where(temperature_B1 == 0, 1, temperature_B1)
    kept_BV = keep(cooled_BV, how.top_k, how.top_p)
    edges_BV = jnp.cumsum(jax.nn.softmax(cooled_BV, axis=-1, where=kept_BV), axis=-1)
    height_B1 = jax.vmap(jax.random.uniform)(keys_B)[:, None] * edges_BV[:, -1:]
    # The first token whose edge is above the height. A token outside `kept` repeats the edge before
    # it and must not be drawn for it.
    above_BV = kept_BV & (edges_BV > height_B1)
    # Rounding may leave no edge above the height; any kept token is then as good.
    is_above_B1 = above_BV.any(-1, keepdims=True)
    drawn_B = jnp.argmax(jnp.where(is_above_B1, above_BV, kept_BV), axis=-1).astype(jnp.int32)
    return jnp.where(temperature_B1[:, 0] == 0, most_likely(logits_BV), drawn_B)


def keep(logits_BV: jax.Array, top_k: ArrayLike | None, top_p: ArrayLike | None) -> jax.Array:
    """Returns mask_BV of the tokens that may be drawn.

    Those are the `top_k` most likely ones (0 or None: all), and of them each token before which the
    more likely ones hold at most the probability `top_p`. Equally likely tokens are kept or dropped
    together. Both are one number, or one per sequence.
    """
    if top_k is not None:
        logits_BV = _only_top_k(logits_BV, _column(top_k, jnp.int32))
    # After top-k, so that top-p is a share of the tokens that top-k left.
    kept_BV = logits_BV > -jnp.inf
    if top_p is not None:
        kept_BV &= _in_top_p(logits_BV, _column(top_p, jnp.float32))
    return kept_BV


def _only_top_k(logits_BV: jax.Array, top_k_B1: jax.Array) -> jax.Array:
    """Returns the logits of the `top_k` most likely tokens, and -inf for the others."""
    # Floats sort as the integers of their bits once the negative ones are inverted.
    bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.uint32)
    order_BV = jnp.where(bits_BV < TOP_BIT, bits_BV | TOP_BIT, ~bits_BV)

    # The k-th largest is found bit by bit: a sort costs more, and its k could not differ.
    def raise_bit(i: jax.Array, least_B1: jax.Array) -> jax.Array:
        """Sets bit 31 - i of the floor if at least `top_k` tokens remain above it."""
        higher_B1 = least_B1 | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        count_B1 = jnp.sum(order_BV >= higher_B1, -1, keepdims=True)
        return jnp.where(count_B1 >= top_k_B1, higher_B1, least_B1)

    zeros_B1 = jnp.zeros((len(logits_BV), 1), jnp.uint32)
    least_B1 = jax.lax.fori_loop(0, 32, raise_bit, zeros_B1)
    kept_BV = (top_k_B1 == 0) | (order_BV >= least_B1)
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def _in_top_p(logits_BV: jax.Array, top_p_B1: jax.Array) -> jax.Array:
    """Returns mask_BV of the tokens before which the more likely ones hold at most `top_p`."""
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)

    # The smallest probability that is kept is found bit by bit, because sorting the vocabulary
    # costs thirty times as much on a CPU. Positive floats sort as the integers of their bits.
    def raise_bit(i: jax.Array, floor_B1: jax.Array) -> jax.Array:
        """Sets bit 29 - i of the floor if the tokens above it still hold more than top_p."""
        higher_B1 = floor_B1 | (jnp.uint32(1) << (29 - i).astype(jnp.uint32))
        above_BV = probs_BV > jax.lax.bitcast_convert_type(higher_B1, jnp.float32)
        mass_B1 = jnp.sum(probs_BV, -1, keepdims=True, where=above_BV)
        return jnp.where(mass_B1 > top_p_B1, higher_B1, floor_B1)

    # Probabilities are at most 1.0, whose bits are 0x3f800000: 30 bits hold them.
    zeros_B1 = jnp.zeros((len(probs_BV), 1), jnp.uint32)
    floor_B1 = jax.lax.fori_loop(0, 30, raise_bit, zeros_B1)
    return (top_p_B1 >= 1) | (probs_BV > jax.lax.bitcast_convert_type(floor_B1, jnp.float32))


def _column(values: ArrayLike, dtype: type) -> jax.Array:
    """Returns one number, or one per sequence, as [1, 1] or [B, 1]."""
    return jnp.reshape(jnp.asarray(values, dtype), (-1, 1))
