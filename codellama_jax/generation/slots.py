"""The device's part of the engine: one slot per sequence of the batch, and what fills and reads it.

Shapes are few: the slots are fixed, the cache's length and the prompts' are buckets, and prompts
are read a few at a time. Every program replaces the donated state in place.

Dims: B slots (sequences), S positions of the cache, M = K B key heads of all slots, R prompts of T
tokens that are read together, N slots that are copied, V vocabulary entries.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from codellama_jax.config import ModelConfig
from codellama_jax.generation.drawing import Draws, draw
from codellama_jax.models import decoding
from codellama_jax.models.family import family_of

CHUNK = 64  # steps of `decode` at most

Values = jax.Array | np.ndarray


@struct.dataclass
class State:
    """The arrays that the programs read and replace. Those of a free slot mean nothing.

    A slot keeps the keys and values of its sequence, and the logits after its prompt, until another
    prompt is read into it: further prompts that begin alike copy them.

    `decode` writes into free slots too, at `positions_B`, which is after all that they hold.
    """

    cache: decoding.Cache
    logits_BV: jax.Array  # after the prompt of each slot
    tokens_B: jax.Array  # the last token of each slot, not yet in the cache
    positions_B: jax.Array  # of these tokens


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(config: ModelConfig, kv_cache: str, slots: int, capacity: int) -> State:
    """Returns a state without sequences.

    Args:
      config: the model, as `for_decoding` returns it.
      kv_cache: how the cache is stored.
      slots: B.
      capacity: S.
    """
    # Heads and slots share the leading dim (M = K B), so that a cache row is one sequence's keys of
    # one head and a slot is addressed by a list of rows.
    shape = config.n_kv_heads * slots, capacity, config.head_dim
    # Zeros, because a free slot is computed too and must hold finite values.
    zeros_MSH = jnp.zeros(shape, config.compute_dtype)
    layers = family_of(config).attention_layers(config)
    keys, values = ([decoding.KV_CACHES[kv_cache](zeros_MSH)] * layers for _ in range(2))
    cache = decoding.Cache(tuple(keys), tuple(values))
    zeros_B = jnp.zeros(slots, jnp.int32)
    return _sharded(config, State(cache, jnp.zeros((slots, config.vocab_size)), zeros_B, zeros_B))


@functools.partial(jax.jit, static_argnums=(0, 1))
def resized(config: ModelConfig, capacity: int, state: State) -> State:
    """Returns the state with a cache of `capacity` positions: with free ones, or without the last.

    Args:
      config: the model, as `for_decoding` returns it.
      capacity: S of the new cache.
      state: the state.
    """

    def changed(a_MS: jax.Array) -> jax.Array:
        # Dim 1 is the position for int8 scales as well as for keys, whatever dims follow it.
        widths = [(0, 0)] * a_MS.ndim
        widths[1] = (0, max(0, capacity - a_MS.shape[1]))
        return jnp.pad(a_MS[:, :capacity], widths)

    # Those of free slots may be beyond the end.
    positions_B = jnp.minimum(state.positions_B, capacity - 1)
    cache = jax.tree.map(changed, state.cache)
    return _sharded(config, dataclasses.replace(state, cache=cache, positions_B=positions_B))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def read(
    config: ModelConfig,
    kv_cache: str,
    weights: Any,
    state: State,
    tokens_RT: Values,
    lengths_R: Values,
    slots_R: Values,
) -> State:
    """Reads prompts into slots.

    Args:
      config: the model, as `for_decoding` returns it.
      kv_cache: how the cache is stored.
      weights: the decoding weights.
      state: the state.
      tokens_RT, lengths_R: the prompts, as `batches.padded` returns them.
      slots_R: the slot of each prompt; B for those that only pad the batch.
    """
    # A window that is shorter than a sharded dim would make every device gather the cache.
    is_split = jax.sharding.get_abstract_mesh().shape.get("context", 1) > 1
    capacity = jax.tree.leaves(state.cache)[0].shape[1]
    new_slots = capacity - tokens_RT.shape[1] if is_split else 0
    logits_RV, new = decoding.prefill(
        config, weights, jnp.asarray(tokens_RT), jnp.asarray(lengths_R), new_slots, kv_cache
    )
    rows_M = decoding.rows_of(config, len(state.tokens_B), jnp.asarray(slots_R))

    def write(a_MS: jax.Array, new_MS: jax.Array) -> jax.Array:
        # A row of padding has the slot B. Its index is out of bounds, and mode="drop" ignores it.
        return a_MS.at[rows_M, : new_MS.shape[1]].set(new_MS, mode="drop", unique_indices=True)

    cache = jax.tree.map(write, state.cache, new)
    # The state's logits are replicated, so the new ones are gathered before they are scattered.
    logits_RV = decoding.constrain(logits_RV, decoding.REPLICATED)
    logits_BV = state.logits_BV.at[slots_R].set(logits_RV, mode="drop")
    positions_B = state.positions_B.at[slots_R].set(jnp.asarray(lengths_R), mode="drop")
    state = State(cache, logits_BV, state.tokens_B, positions_B)
    return _sharded(config, state)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def extended(
    config: ModelConfig,
    weights: Any,
    state: State,
    tokens_RT: Values,
    starts_R: Values,
    lengths_R: Values,
    slots_R: Values,
) -> State:
    """Reads further pieces of prompts into slots that hold their beginnings.

    Args:
      config: the model, as `for_decoding` returns it.
      weights: the decoding weights.
      state: the state.
      tokens_RT, lengths_R: the pieces, as `batches.padded` returns them.
      starts_R: how many tokens of each prompt its slot holds.
      slots_R: the slot of each prompt; B for those that only pad the batch.
    """
    starts_R, lengths_R, slots_R = map(jnp.asarray, (starts_R, lengths_R, slots_R))
    tokens_RT = jnp.asarray(tokens_RT)
    # The new keys and values are written straight into the slots' rows, after the `starts_R` tokens
    # that they hold, and the queries attend to both.
    logits_RV, cache = family_of(config).extend(
        config, weights, state.cache, tokens_RT, starts_R, lengths_R, slots_R
    )
    logits_RV = decoding.constrain(logits_RV, decoding.REPLICATED)
    logits_BV = state.logits_BV.at[slots_R].set(logits_RV, mode="drop")
    positions_B = state.positions_B.at[slots_R].set(starts_R + lengths_R, mode="drop")
    state = State(cache, logits_BV, state.tokens_B, positions_B)
    return _sharded(config, state)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def copied(
    config: ModelConfig,
    state: State,
    sources_N: Values,
    targets_N: Values,
    lengths_N: Values,
) -> State:
    """Copies sequences from slot to slot; all are read before any is written.

    Args:
      config: the model, as `for_decoding` returns it.
      state: the state.
      sources_N: slots that are copied.
      targets_N: the slots to copy to; B for those that only pad the list.
      lengths_N: tokens of each that the targets use.
    """
    sources_N, targets_N = jnp.asarray(sources_N), jnp.asarray(targets_N)
    slots = len(state.tokens_B)
    sources_M = decoding.rows_of(config, slots, sources_N)
    targets_M = decoding.rows_of(config, slots, targets_N)

    def changed(a_MS: jax.Array) -> jax.Array:
        # The gather on the right is complete before the scatter, so a slot may be the source of one
        # copy and the target of another. All S positions are copied, because a static shape is
        # needed: those after `lengths_N` are overwritten before any query attends to them.
        return a_MS.at[targets_M].set(a_MS[sources_M], mode="drop", unique_indices=True)

    cache = jax.tree.map(changed, state.cache)
    logits_BV = state.logits_BV.at[targets_N].set(state.logits_BV[sources_N], mode="drop")
    positions_B = state.positions_B.at[targets_N].set(jnp.asarray(lengths_N), mode="drop")
    state = State(cache, logits_BV, state.tokens_B, positions_B)
    return _sharded(config, state)


@jax.jit
def start(
    logits_BV: jax.Array,
    tokens_B: jax.Array,
    positions_B: jax.Array,
    draws: Draws,
    lengths_B: Values,
    first_BV: Values | None,
) -> tuple[jax.Array, jax.Array]:
    """Draws the first tokens of sequences whose prompts have been read or copied.

    Returns the state's tokens_B and positions_B with them. The cache is no argument, so that one
    program serves all its lengths.

    Args:
      logits_BV, tokens_B, positions_B: of the state.
      draws: the settings of the draws.
      lengths_B: of the prompts of these sequences; 0 for the other slots.
      first_BV: which tokens may come first; None for all.
    """
    lengths_B = jnp.asarray(lengths_B)
    if first_BV is not None:
        logits_BV = jnp.where(first_BV, logits_BV, -jnp.inf)
    starts_B = lengths_B > 0
    # The first new token has the position len(prompt), which is also its number for the PRNG key.
    tokens_B = jnp.where(starts_B, draw(logits_BV, draws, lengths_B), tokens_B)
    return tokens_B, jnp.where(starts_B, lengths_B, positions_B)


@functools.partial(jax.jit, static_argnums=(0, 8), donate_argnums=2)
def decode(
    config: ModelConfig,
    weights: Any,
    state: State,
    draws: Draws,
    done_B: Values,
    steps: Values | int,
    most_done: Values | int,
    slots_N: Values | None = None,
    length: int = 0,
) -> tuple[State, jax.Array, jax.Array]:
    """Draws up to `steps` tokens per slot, and stops before once `most_done` slots are done.

    Slots that are done are still computed, since a batch has one shape. With `slots_N` only these
    are, up to a length: they are copied from the state, and back after the last step. Returns the
    new state, new_BT, and the number of its columns that hold new tokens.

    Args:
      config: the model, as `for_decoding` returns it.
      weights: the decoding weights.
      state: the state after the tokens so far.
      draws: the settings of the draws.
      done_B: the slots that are done before the first step.
      steps: at most CHUNK. It is traced, so that a shorter chunk compiles nothing new.
      most_done: slots.
      slots_N: different slots, among them all that are not done; None for all slots.
      length: positions that are copied, at least those that the steps reach.
    """
    if slots_N is None:
        return _decode(config, weights, state, draws, jnp.asarray(done_B), steps, most_done)
    slots_N, B = jnp.asarray(slots_N), len(state.tokens_B)
    # The loop below then runs on a smaller batch and a shorter cache, which saves most of the
    # memory traffic of a step. It is paid for with one copy out and one back per chunk.
    few = _taken(config, state, slots_N, length)
    done_N = jnp.asarray(done_B)[slots_N]
    # The slots left out are all done, so that many of `most_done` are reached already.
    most_done = most_done - (B - len(slots_N))
    arrays = few, draws.taken(slots_N), done_N
    few, new_NT, count = _decode(config, weights, *arrays, steps, most_done)
    new_BT = jnp.zeros((B, CHUNK), jnp.int32).at[slots_N].set(new_NT)
    return _put_back(config, state, few, slots_N), new_BT, count


def _taken(config: ModelConfig, state: State, slots_N: jax.Array, length: int) -> State:
    """Returns the state of some slots alone, with the first `length` positions of the cache."""
    rows_M = decoding.rows_of(config, len(state.tokens_B), slots_N)
    first = (rows_M, slice(length))
    cache = jax.tree.map(operator.itemgetter(first), state.cache)
    arrays = (state.logits_BV, state.tokens_B, state.positions_B)
    return State(cache, *(a_B[slots_N] for a_B in arrays))


def _put_back(config: ModelConfig, state: State, few: State, slots_N: jax.Array) -> State:
    """Returns the state with what `_taken` returned, after steps, in its slots."""
    rows_M = decoding.rows_of(config, len(state.tokens_B), slots_N)

    def write(a_MS: jax.Array, few_MS: jax.Array) -> jax.Array:
        # Only the first positions come back: the steps wrote nowhere else.
        return a_MS.at[rows_M, : few_MS.shape[1]].set(few_MS, unique_indices=True)

    return State(
        jax.tree.map(write, state.cache, few.cache),
        state.logits_BV,
        state.tokens_B.at[slots_N].set(few.tokens_B),
        state.positions_B.at[slots_N].set(few.positions_B),
    )


def _decode(
    config: ModelConfig,
    weights: Any,
    state: State,
    draws: Draws,
    done_B: jax.Array,
    steps: Values | int,
    most_done: Values | int,
) -> tuple[State, jax.Array, jax.Array]:
    """Returns what `decode` does for all slots of a state."""
    # The carry of the while loop: steps so far, which slots are done, the state, the new tokens.
    Loop = tuple[jax.Array, jax.Array, State, jax.Array]
    stop_ids_BI, ends_B = jnp.asarray(draws.stop_ids_BI), jnp.asarray(draws.ends_B)

    # `steps` and `most_done` are traced, so that every chunk length runs the same program.
    def unfinished(loop: Loop) -> jax.Array:
        i, done_B, _, _ = loop
        return (i < steps) & (jnp.sum(done_B) < most_done)

    def step(loop: Loop) -> Loop:
        i, done_B, state, new_BT = loop
        # Writes the keys and values of tokens_B at positions_B and returns the logits after them.
        logits_BV, cache = family_of(config).step(
            config, weights, state.cache, state.tokens_B, state.positions_B
        )
        # A slot that is done stays where it is, within its own positions.
        positions_B = jnp.where(done_B, state.positions_B, state.positions_B + 1)
        tokens_B = draw(logits_BV, draws, positions_B)
        # Evaluated on the device, since a round trip to the host per token would dominate the step.
        done_B |= (tokens_B[:, None] == stop_ids_BI).any(-1) | (positions_B >= ends_B)
        new_BT = jax.lax.dynamic_update_slice(new_BT, tokens_B[:, None], (0, i))
        state = dataclasses.replace(state, cache=cache, tokens_B=tokens_B, positions_B=positions_B)
        return i + 1, done_B, state, new_BT

    zeros_BT = jnp.zeros((len(state.tokens_B), CHUNK), jnp.int32)
    new_BT = decoding.constrain(zeros_BT, decoding.REPLICATED)
    start = jnp.int32(0), done_B, state, new_BT
    count, _, state, new_BT = jax.lax.while_loop(unfinished, step, start)
    return state, new_BT, count


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def verified(
    config: ModelConfig,
    weights: Any,
    state: State,
    draws: Draws,
    done_B: Values,
    drafts_BD: Values,
) -> tuple[State, jax.Array, jax.Array]:
    """Draws one token per slot, and more where they agree with a draft.

    Returns the new state, new_BT with T = D + 1, and how many of each slot's columns are the tokens
    that `decode` would draw: those that agree with the draft, and the first after them.

    Args:
      config: the model, as `for_decoding` returns it.
      weights: the decoding weights.
      state: the state after the tokens so far.
      draws: the settings of the draws.
      done_B: the slots that are done.
      drafts_BD: the tokens that may come next.
    """
    done_B, drafts_BD = jnp.asarray(done_B), jnp.asarray(drafts_BD)
    # The last token is not in the cache yet, so that it is read together with its draft. One
    # forward pass of D + 1 tokens reads the weights once, and reading the weights is the main cost
    # of a step.
    tokens_BT = jnp.concatenate([state.tokens_B[:, None], drafts_BD], axis=1)
    B, T = tokens_BT.shape
    logits_BTV, cache = family_of(config).extend(
        config, weights, state.cache, tokens_BT, state.positions_B
    )
    positions_BT = state.positions_B[:, None] + 1 + jnp.arange(T)[None]
    # The same draw at each position as in `decode`.
    logits_NV = logits_BTV.reshape(B * T, -1)
    new_BT = draw(logits_NV, draws.repeated(T), positions_BT.ravel()).reshape(B, T)
    agrees_BD = new_BT[:, :-1] == drafts_BD
    # cumprod is 1 up to the first disagreement and 0 after it, so that its sum is the length of
    # the accepted prefix.
    accepted_B = jnp.sum(jnp.cumprod(agrees_BD, axis=1), axis=1)
    last_B = jnp.take_along_axis(new_BT, accepted_B[:, None], axis=1)[:, 0]
    # Keys and values of tokens that were not accepted are after the new position.
    positions_B = jnp.minimum(state.positions_B + 1 + accepted_B, jnp.asarray(draws.ends_B))
    tokens_B = jnp.where(done_B, state.tokens_B, last_B)
    positions_B = jnp.where(done_B, state.positions_B, positions_B)
    state = _sharded(config, State(cache, state.logits_BV, tokens_B, positions_B))
    return state, *decoding.constrain((new_BT, accepted_B + 1), decoding.REPLICATED)


def state_specs(config: ModelConfig) -> State:
    """Returns how a state is sharded: its cache as `cache_spec` states, its other arrays not."""
    replicated: Any = decoding.REPLICATED
    cache: Any = decoding.cache_spec(config)  # of every array in the cache
    return State(cache, replicated, replicated, replicated)


def _sharded(config: ModelConfig, state: State) -> State:
    return decoding.constrain(state, state_specs(config))
