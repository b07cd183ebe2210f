"""Generates tokens: a jitted prefill, then a jitted loop of decoding steps and draws.

The loop runs a chunk of steps at a time. Between chunks the host reads the new tokens, decides
which sequences have ended and streams text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError
from codellama_jax.generation.memory import check_prompt_memory, check_weights_memory
from codellama_jax.generation.settings import CAPACITY, Sampling
from codellama_jax.models import decoding
from codellama_jax.models.family import family_of
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import on_mesh_of

# Steps per chunk. Every chunk costs a round trip to the device, and tokens drawn after the end of a
# sequence are wasted: stop strings are searched only between chunks, stop ids on the device.
CHUNK = 64
CHUNK_WITH_STOP = 16
CHUNK_STREAMED = 4
MAX_STOP_IDS = 4
NO_ID = -1  # pads the stop ids; no token has it

Values = jax.Array | np.ndarray


@struct.dataclass
class State:
    """The arrays that a decoding step reads and replaces.

    Sequences that are done are still computed, since a batch has one shape, and their tokens are
    ignored.
    """

    cache: decoding.Cache
    tokens_B: jax.Array  # the last token of each sequence, not yet in the cache
    positions_B: jax.Array  # of these tokens
    done_B: Values


@struct.dataclass
class Draws:
    """The inputs of every draw of a batch."""

    keys_B: jax.Array  # one PRNG key per sequence
    stop_ids: Values
    vocab: Values  # ids from here on are never drawn
    first_BV: Values | None = None  # which tokens may come first; None for all


def generate(
    model: TrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int] = (),
    *,
    stop: Callable[[int, list[int]], bool] | None = None,
    on_tokens: Callable[[int, list[int]], None] | None = None,
    vocab: int | None = None,
    numbers: Sequence[int] | None = None,
    first: Sequence[np.ndarray | None] | None = None,
) -> list[list[int]]:
    """Returns the new ids after each prompt, up to the first that ends it.

    The ids after a prompt do not depend on the other prompts. Raises UserError for a prompt that is
    empty, too long, or of another vocabulary, and where memory does not suffice.

    Args:
      model: the model. Its decoding weights are prepared by the first call.
      prompts: ids of any lengths, BOS included where wanted.
      sampling: how tokens are drawn, and at most how many.
      stop_ids: at most 4 ids; each ends a sequence and is not returned.
      stop: called with the index of a prompt and all its new ids, returns whether they suffice. The
        sequence ends with the first id for which it is true. It must be monotone: more ids never
        turn true into false.
      on_tokens: called with the index of a prompt and all its new ids whenever there are more.
      vocab: ids from here on, which pad the vocabulary, are never drawn.
      numbers: one per prompt, below 2**32. A sequence's PRNG key is folded from the seed and its
        number. They are 0, 1, 2, ... unless given.
      first: for each prompt the ids that may come first; None for any.
    """
    if not prompts:
        return []
    check_prompts(model.config, prompts, sampling.max_new_tokens)
    config = decoding.for_decoding(model.config)
    sequences = _Sequences(len(prompts), sampling.max_new_tokens, stop_ids, stop, on_tokens)
    chunk = CHUNK_STREAMED if on_tokens else CHUNK_WITH_STOP if stop else CHUNK
    with on_mesh_of(model.params, decoding.LOGICAL_AXES):
        tokens_BT, lengths_B = padded(
            prompts, jax.sharding.get_abstract_mesh().shape.get("data", 1)
        )
        draws = Draws(
            _keys(sampling.seed, numbers, len(tokens_BT)),
            np.array([*stop_ids, *[NO_ID] * (MAX_STOP_IDS - len(stop_ids))], np.int32),
            np.array(vocab or config.vocab_size, np.int32),
            first_mask(first, len(tokens_BT), config.vocab_size),
        )
        weights = decoding_weights(model)
        # Seed and number of tokens do not change the programs: other values compile nothing new.
        static = config, dataclasses.replace(sampling, max_new_tokens=1, seed=0)
        new_slots = bucket(sampling.max_new_tokens)
        start = (*static, new_slots, model.kv_cache, weights, tokens_BT, lengths_B, draws)
        # The compiler knows the memory of a prompt before any of it is allocated. The call of
        # `_start` below finds this program in JAX's cache and does not compile it again.
        compiled = _start.lower(*start).compile()
        check_prompt_memory(compiled, len(prompts), max(map(len, prompts)))
        state = _start(*start)
        sequences.take(fetched(state.tokens_B)[:, None])
        draws = dataclasses.replace(draws, first_BV=None)
        while not sequences.done.all():
            steps = min(chunk, sampling.max_new_tokens - sequences.count)
            # Sequences that only pad the batch are done from the start.
            padding = len(tokens_BT) - len(prompts)
            done_B = np.pad(sequences.done, (0, padding), constant_values=True)
            state = dataclasses.replace(state, done_B=done_B)
            state, new_BT = _decode(*static, weights, state, draws, steps)
            sequences.take(fetched(new_BT)[:, :steps])
    return sequences.new


def _keys(seed: int, numbers: Sequence[int] | None, size: int) -> jax.Array:
    """Returns keys_B, the PRNG key of each sequence of a batch of `size`."""
    numbers_B = np.resize(np.array(numbers or range(size), np.uint32), size)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers_B)


def fetched(x: jax.Array) -> np.ndarray:
    """Returns an array's values."""
    # Unlike `np.asarray`, this wait can be ended by Ctrl-C.
    return np.asarray(jax.block_until_ready(x))


def decoding_weights(model: TrainedModel) -> Any:
    """Returns the model's decoding weights.

    Raises UserError if they are still to be prepared and do not fit in memory.
    """
    if not model.is_prepared:
        prepare = functools.partial(decoding.prepare, decoding.for_decoding(model.config))
        shapes = jax.eval_shape(prepare, model.params)
        check_weights_memory(_bytes_per_device(shapes))
    return model.decoding_weights


def _bytes_per_device(tree: object) -> int:
    """Returns the bytes of arrays that are sharded evenly over the mesh in use."""
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return total // max(1, jax.sharding.get_abstract_mesh().size)


def sample(logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
    """Draws one token per sequence, int32.

    It inverts the distribution at one uniform number per sequence. The Gumbel trick needs a random
    number per vocabulary entry, which costs more than a decoding step of a small model.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # Temperature first: top-p then keeps a share of the distribution that is sampled.
    logits_BV = logits_BV / sampling.temperature
    kept_BV = keep(logits_BV, sampling.top_k, sampling.top_p)
    edges_BV = jnp.cumsum(jax.nn.softmax(logits_BV, axis=-1, where=kept_BV), axis=-1)
    height_B1 = jax.vmap(jax.random.uniform)(keys_B)[:, None] * edges_BV[:, -1:]
    # The first token whose edge is above the height. A token outside `kept` repeats the edge before
    # it and must not be drawn for it.
    above_BV = kept_BV & (edges_BV > height_B1)
    # Rounding may leave no edge above the height; any kept token is then as good.
    is_above_B1 = above_BV.any(-1, keepdims=True)
    return jnp.argmax(jnp.where(is_above_B1, above_BV, kept_BV), axis=-1).astype(jnp.int32)


def keep(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Returns mask_BV of the tokens that may be drawn.

    Those are the `top_k` most likely ones (0: all), and of them each token before which the more
    likely ones hold at most the probability `top_p`. Equally likely tokens are kept or dropped
    together.
    """
    if top_k and top_k < logits_BV.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if top_p >= 1:
        return logits_BV > -jnp.inf
    # After top-k, so that top-p is a share of the tokens that top-k left.
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)

    # The smallest probability that is kept is found bit by bit, because sorting the vocabulary
    # costs thirty times as much on a CPU. Positive floats sort as the integers of their bits.
    def raise_bit(i: jax.Array, floor_B1: jax.Array) -> jax.Array:
        """Sets bit 29 - i of the floor if the tokens above it still hold more than top_p."""
        higher_B1 = floor_B1 | (jnp.uint32(1) << (29 - i).astype(jnp.uint32))
        above_BV = probs_BV > jax.lax.bitcast_convert_type(higher_B1, jnp.float32)
        mass_B1 = jnp.sum(probs_BV, -1, keepdims=True, where=above_BV)
        return jnp.where(mass_B1 > top_p, higher_B1, floor_B1)

    # Probabilities are at most 1.0, whose bits are 0x3f800000: 30 bits hold them.
    zeros_B1 = jnp.zeros((len(probs_BV), 1), jnp.uint32)
    floor_B1 = jax.lax.fori_loop(0, 30, raise_bit, zeros_B1)
    return probs_BV > jax.lax.bitcast_convert_type(floor_B1, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(
    config: ModelConfig,
    sampling: Sampling,
    new_slots: int,
    kv_cache: str,
    weights: Any,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    draws: Draws,
) -> State:
    """Reads the prompts and draws the first token of each.

    Args:
      config: the model, as `for_decoding` returns it.
      sampling: how tokens are drawn.
      new_slots: room in the cache beyond the prompts, in tokens.
      kv_cache: how the cache is stored.
      weights: the decoding weights.
      tokens_BT, lengths_B: the prompts, as `padded` returns them.
      draws: the inputs of the draws.
    """
    logits_BV, cache = decoding.prefill(config, weights, tokens_BT, lengths_B, new_slots, kv_cache)
    tokens_B = _draw(logits_BV, sampling, draws, lengths_B)
    return State(cache, tokens_B, lengths_B, jnp.zeros(tokens_B.shape, bool))


# The state is donated: each step then writes into the cache in place instead of copying it.
@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _decode(
    config: ModelConfig,
    sampling: Sampling,
    weights: Any,
    state: State,
    draws: Draws,
    steps: int | jax.Array,
) -> tuple[State, jax.Array]:
    """Draws up to `steps` tokens per sequence, fewer if all sequences are done.

    Returns the new state, and new_BT, whose first columns are the new tokens.

    Args:
      config: the model, as `for_decoding` returns it.
      sampling: how tokens are drawn.
      weights: the decoding weights.
      state: the state after the tokens so far.
      draws: the inputs of the draws.
      steps: at most CHUNK. It is traced, so that the last, shorter chunk compiles nothing new.
    """
    Loop = tuple[jax.Array, State, jax.Array]

    def unfinished(loop: Loop) -> jax.Array:
        i, state, _ = loop
        return (i < steps) & ~jnp.all(state.done_B)

    def draw(loop: Loop) -> Loop:
        i, state, new_BT = loop
        logits_BV, cache = family_of(config).step(
            config, weights, state.cache, state.tokens_B, state.positions_B
        )
        positions_B = state.positions_B + 1
        tokens_B = _draw(logits_BV, sampling, draws, positions_B)
        done_B = state.done_B | (tokens_B[:, None] == draws.stop_ids[None]).any(-1)
        new_BT = jax.lax.dynamic_update_slice(new_BT, tokens_B[:, None], (0, i))
        return i + 1, State(cache, tokens_B, positions_B, done_B), new_BT

    zeros_BT = jnp.zeros((len(state.tokens_B), CHUNK), jnp.int32)
    new_BT = decoding.constrain(zeros_BT, decoding.REPLICATED)
    _, state, new_BT = jax.lax.while_loop(unfinished, draw, (jnp.int32(0), state, new_BT))
    return state, new_BT


def _draw(
    logits_BV: jax.Array, sampling: Sampling, draws: Draws, positions_B: jax.Array
) -> jax.Array:
    """Draws the tokens of these positions.

    A draw depends on the sequence's PRNG key and the position alone: on neither the other sequences
    nor the size of the chunks.
    """
    # Replicated, because every host of a pod reads the tokens.
    logits_BV = decoding.constrain(logits_BV, decoding.REPLICATED)
    # Embeddings that pad the vocabulary were never trained: their logits mean nothing.
    logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1])[None] < draws.vocab, logits_BV, -jnp.inf)
    if draws.first_BV is not None:
        logits_BV = jnp.where(draws.first_BV, logits_BV, -jnp.inf)
    # Folding in the position gives every draw its key without a state that is carried along.
    keys_B = jax.vmap(jax.random.fold_in)(draws.keys_B, positions_B)
    return decoding.constrain(sample(logits_BV, sampling, keys_B), decoding.REPLICATED)


def first_mask(
    first: Sequence[np.ndarray | None] | None, size: int, vocab: int
) -> np.ndarray | None:
    """Returns mask_BV of the ids named for each sequence; one without any may begin with all."""
    if first is None:
        return None
    mask_BV = np.ones((size, vocab), bool)
    for index, ids in enumerate(first):
        if ids is not None:
            mask_BV[index] = np.isin(np.arange(vocab), ids)
    return mask_BV


class _Sequences:
    """The new ids of each sequence, up to its end.

    Attributes:
      new: the ids.
      done: which sequences have ended, bool [B].
      count: ids of every sequence that has not ended.
    """

    def __init__(
        self,
        size: int,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        stop: Callable[[int, list[int]], bool] | None,
        on_tokens: Callable[[int, list[int]], None] | None,
    ) -> None:
        """Starts without ids. `size`: number of sequences; the others as in `generate`."""
        self.new: list[list[int]] = [[] for _ in range(size)]
        self.done = np.zeros(size, bool)
        self.count = 0
        self.max_new_tokens, self.stop_ids = max_new_tokens, frozenset(stop_ids)
        self.stop, self.on_tokens = stop, on_tokens

    def take(self, new_BT: np.ndarray) -> None:
        """Adds drawn ids, except to sequences that have ended."""
        self.count += new_BT.shape[1]
        for index in np.flatnonzero(~self.done).tolist():
            self._extend(index, new_BT[index].tolist())
        self.done |= self.count >= self.max_new_tokens

    def _extend(self, index: int, drawn: list[int]) -> None:
        ids = drawn
        for i, token in enumerate(drawn):
            if token in self.stop_ids:
                ids = drawn[:i]
                self.done[index] = True
                break
        kept = self.new[index]
        # `stop` is monotone, so one call per chunk decides whether to search for the exact end.
        if self.stop and ids and self.stop(index, kept + ids):
            ids = ids[: self._first_end(index, ids)]
            self.done[index] = True
        kept += ids
        if self.on_tokens and ids:
            self.on_tokens(index, kept)

    def _first_end(self, index: int, ids: list[int]) -> int:
        """Returns how many of these ids make `stop` true."""
        assert self.stop is not None
        for count in range(1, len(ids)):
            if self.stop(index, self.new[index] + ids[:count]):
                return count
        return len(ids)


def bucket(n: int) -> int:
    """Rounds up to 64, 96, 128, 192, ..., so that few shapes are compiled."""
    power = max(64, 1 << (n - 1).bit_length())
    return power * 3 // 4 if power > 64 and n <= power * 3 // 4 else power


def padded(prompts: Sequence[Sequence[int]], shards: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens_BT and lengths_B of a padded batch.

    T is a `bucket`; B is a power of two, or the next multiple of `shards`. Sequences that only pad
    the batch hold one token.
    """
    power = 1 << (len(prompts) - 1).bit_length()
    shape = power + -power % shards, bucket(max(map(len, prompts)))
    tokens_BT, lengths_B = np.zeros(shape, np.int32), np.ones(shape[0], np.int32)
    for index, prompt in enumerate(prompts):
        tokens_BT[index, : len(prompt)] = prompt
        lengths_B[index] = len(prompt)
    return tokens_BT, lengths_B


def check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raises UserError for a prompt that cannot be continued."""
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= CAPACITY - max_new_tokens:
            most = CAPACITY - max_new_tokens
            allowed = f"it needs at least one and at most {most} beside {max_new_tokens} new ones"
            raise UserError(f"prompt {index} has {len(prompt)} tokens: {allowed}")
        name = f"prompt {index} with up to {max_new_tokens:,} new tokens"
        config.check_length(name, len(prompt) + max_new_tokens)
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            ids = f"ids from {min(prompt)} to {max(prompt)} where the model has {config.vocab_size}"
            raise UserError(f"prompt {index} has {ids}: use the tokenizer of the same run")
