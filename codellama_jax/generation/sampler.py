"""Generation of tokens: a jitted prefill, then a jitted loop of decoding steps and draws, a chunk at a time."""

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

CHUNK = 64  # tokens a row between two looks at what came out
CHUNK_WITH_STOP = 16  # where text may end a row, and what is generated after its end is lost
CHUNK_STREAMED = 4


@struct.dataclass
class State:
    """What goes from step to step. A row that is done is still computed, and ignored."""

    cache: decoding.Cache
    tokens_B: jax.Array  # the last of each row, not yet in the cache
    positions_B: jax.Array  # theirs
    done_B: jax.Array


@struct.dataclass
class Draws:
    """What stays the same while a batch is generated."""

    keys_B: jax.Array
    stop_ids: jax.Array
    vocab: jax.Array
    first_BV: jax.Array | None = None  # which tokens may be the first; None for all


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
    """Goes on from each prompt up to a stop id, which is cut off, or until `stop(row, ids)`, or for `max_new_tokens`.

    prompts: ids of any lengths, BOS included where wanted. What comes after one does not depend on the others.
    vocab: ids from here on, which pad the vocabulary, are never drawn.
    stop: given all new ids of a row, says whether they are enough; the row ends with the first token that makes it true, and
      what is once enough must stay so with more ids.
    on_tokens: told (row, all its new ids so far) as they come.
    numbers: one a prompt, below 2**32, that decide its chance together with the seed; 0, 1, 2, ... unless given.
    first: for each prompt the ids that its first new one may be; None for any.

    Returns the new ids of each prompt. Raises UserError for a prompt that is empty, too long, or of another vocabulary.
    """
    if not prompts:
        return []
    _check(model.config, prompts, sampling.max_new_tokens)
    config = decoding.for_decoding(model.config)
    rows = _Rows(len(prompts), sampling.max_new_tokens, stop_ids, stop, on_tokens)
    chunk = CHUNK_STREAMED if on_tokens else CHUNK_WITH_STOP if stop else CHUNK
    with on_mesh_of(model.params, decoding.LOGICAL_AXES):
        tokens_BT, lengths_B = _pad(prompts, jax.sharding.get_abstract_mesh().shape.get("data", 1))
        numbers_B = np.resize(np.array(numbers or range(len(tokens_BT)), np.uint32), len(tokens_BT))
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(sampling.seed), numbers_B)
        stop_ids_4 = np.array([*stop_ids, *[-1] * (4 - len(stop_ids))], np.int32)
        draws = Draws(
            keys_B,
            stop_ids_4,
            np.int32(vocab or config.vocab_size),
            _mask(first, len(tokens_BT), config.vocab_size),
        )
        weights = _decoding_weights(model)
        static = config, dataclasses.replace(sampling, max_new_tokens=1, seed=0)
        start = (*static, bucket(sampling.max_new_tokens), weights, tokens_BT, lengths_B, draws)
        # Compiled here and found again by the call: neither happens twice.
        compiled = _start.lower(*start).compile()
        check_prompt_memory(compiled, len(prompts), max(map(len, prompts)))
        state = _start(*start)
        rows.take(_fetched(state.tokens_B)[:, None])
        draws = draws.replace(first_BV=None)
        while not rows.done.all():
            steps = min(chunk, sampling.max_new_tokens - rows.count)
            done_B = np.pad(rows.done, (0, len(tokens_BT) - len(prompts)), constant_values=True)
            state, new_BT = _decode(*static, weights, state.replace(done_B=done_B), draws, steps)
            rows.take(_fetched(new_BT)[:, :steps])
    return rows.new


def _fetched(x: jax.Array) -> np.ndarray:
    """Returns an array's values. Ctrl-C ends the wait for them, which `np.asarray` alone ignores."""
    return np.asarray(jax.block_until_ready(x))


def _decoding_weights(model: TrainedModel) -> Any:
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
    """Draws a token a row by inverting the distribution at one uniform number: a number a token would cost more than a step."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    kept_BV = keep(logits_BV, sampling.top_k, sampling.top_p)
    edges_BV = jnp.cumsum(jax.nn.softmax(logits_BV, axis=-1, where=kept_BV), axis=-1)
    height_B1 = jax.vmap(jax.random.uniform)(keys_B)[:, None] * edges_BV[:, -1:]
    inside_BV = kept_BV & (edges_BV > height_B1)
    found_B1 = inside_BV.any(
        -1, keepdims=True
    )  # rounding may leave the last edge kept below the height
    return jnp.argmax(jnp.where(found_B1, inside_BV, kept_BV), axis=-1).astype(jnp.int32)


def keep(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Returns which tokens may be drawn, mask_BV: of the k most likely, those before which at most the mass p lies.

    Equally likely tokens are kept or dropped together. The threshold of the mass is found bit by bit, which costs a
    thirtieth of sorting the vocabulary on a CPU.
    """
    if top_k and top_k < logits_BV.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if top_p >= 1:
        return logits_BV > -jnp.inf
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)

    def raise_bit(i, floor_B1):
        """Keeps bit 29 - i if the tokens above still hold more than p. The bits of positive floats sort as the floats."""
        higher_B1 = floor_B1 | (jnp.uint32(1) << (29 - i).astype(jnp.uint32))
        above_BV = probs_BV > jax.lax.bitcast_convert_type(higher_B1, jnp.float32)
        return jnp.where(
            jnp.sum(probs_BV, -1, keepdims=True, where=above_BV) > top_p, higher_B1, floor_B1
        )

    floor_B1 = jax.lax.fori_loop(
        0, 30, raise_bit, jnp.zeros((len(probs_BV), 1), jnp.uint32)
    )  # 1.0 needs 30 bits
    return probs_BV > jax.lax.bitcast_convert_type(floor_B1, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(config, sampling, new_slots, weights, tokens_BT, lengths_B, draws) -> State:
    logits_BV, cache = decoding.prefill(config, weights, tokens_BT, lengths_B, new_slots)
    tokens_B = _draw(logits_BV, sampling, draws, lengths_B)
    return State(cache, tokens_B, lengths_B, jnp.zeros(tokens_B.shape, bool))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _decode(config, sampling, weights, state, draws, steps) -> tuple[State, jax.Array]:
    """Draws up to `steps` tokens a row, fewer if all rows are done. Returns them as the first columns of new_BT."""

    def unfinished(loop):
        i, state, _ = loop
        return (i < steps) & ~state.done_B.all()

    def draw(loop):
        i, state, new_BT = loop
        logits_BV, cache = family_of(config).step(
            config, weights, state.cache, state.tokens_B, state.positions_B
        )
        positions_B = state.positions_B + 1
        tokens_B = _draw(logits_BV, sampling, draws, positions_B)
        done_B = state.done_B | (tokens_B[:, None] == draws.stop_ids[None]).any(-1)
        return (
            i + 1,
            State(cache, tokens_B, positions_B, done_B),
            jax.lax.dynamic_update_slice(new_BT, tokens_B[:, None], (0, i)),
        )

    new_BT = decoding.constrain(
        jnp.zeros((len(state.tokens_B), CHUNK), jnp.int32), decoding.REPLICATED
    )
    _, state, new_BT = jax.lax.while_loop(unfinished, draw, (0, state, new_BT))
    return state, new_BT


def _draw(
    logits_BV: jax.Array, sampling: Sampling, draws: Draws, positions_B: jax.Array
) -> jax.Array:
    """Draws the tokens that will stand at these positions: chance depends on seed, row and position alone.

    Logits and tokens are whole on every device, for every host of a pod reads the tokens.
    """
    logits_BV = decoding.constrain(logits_BV, decoding.REPLICATED)
    logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1])[None] < draws.vocab, logits_BV, -jnp.inf)
    if draws.first_BV is not None:
        logits_BV = jnp.where(draws.first_BV, logits_BV, -jnp.inf)
    return decoding.constrain(
        sample(logits_BV, sampling, jax.vmap(jax.random.fold_in)(draws.keys_B, positions_B)),
        decoding.REPLICATED,
    )


def _mask(first: Sequence[np.ndarray | None] | None, rows: int, vocab: int) -> np.ndarray | None:
    """Returns mask_BV of the ids named for each row; a row without any may take all."""
    if first is None:
        return None
    mask_BV = np.ones((rows, vocab), bool)
    for row, ids in enumerate(first):
        if ids is not None:
            mask_BV[row] = np.isin(np.arange(vocab), ids)
    return mask_BV


class _Rows:
    """What has come out of each row, cut where it ends."""

    def __init__(self, rows: int, max_new_tokens: int, stop_ids, stop, on_tokens):
        self.new: list[list[int]] = [[] for _ in range(rows)]
        self.done = np.zeros(rows, bool)
        self.count = 0  # tokens of every row that is not done
        self.max_new_tokens, self.stop_ids, self.stop, self.on_tokens = (
            max_new_tokens,
            frozenset(stop_ids),
            stop,
            on_tokens,
        )

    def take(self, new_BT: np.ndarray) -> None:
        self.count += new_BT.shape[1]
        for row in np.flatnonzero(~self.done).tolist():
            self._take_row(row, new_BT[row].tolist())
        self.done |= self.count >= self.max_new_tokens

    def _take_row(self, row: int, ids: list[int]) -> None:
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        self.done[row] = end < len(ids)
        ids = ids[:end]
        before = self.new[row]
        if self.stop and ids and self.stop(row, before + ids):
            ids = next(ids[:n] for n in range(1, len(ids) + 1) if self.stop(row, before + ids[:n]))
            self.done[row] = True
        before += ids
        if self.on_tokens and ids:
            self.on_tokens(row, before)


def bucket(n: int) -> int:
    """Rounds up to 64, 96, 128, 192, ..., so that few shapes are compiled."""
    power = max(64, 1 << (n - 1).bit_length())
    return power * 3 // 4 if power > 64 and n <= power * 3 // 4 else power


def _pad(prompts: Sequence[Sequence[int]], shards: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens_BT and lengths_B, T a bucket and B a power of two or the multiple of `shards` after it.

    A row that is added holds one token.
    """
    rows = 1 << (len(prompts) - 1).bit_length()
    shape = rows + -rows % shards, bucket(max(map(len, prompts)))
    tokens_BT, lengths_B = np.zeros(shape, np.int32), np.ones(shape[0], np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt
        lengths_B[row] = len(prompt)
    return tokens_BT, lengths_B


def _check(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises UserError for a prompt that cannot be gone on from."""
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= CAPACITY - max_new_tokens:
            most = CAPACITY - max_new_tokens
            allowed = f"it needs at least one and at most {most} beside {max_new_tokens} new ones"
            raise UserError(f"prompt {row} has {len(prompt)} tokens: {allowed}")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            ids = f"ids from {min(prompt)} to {max(prompt)} where the model has {config.vocab_size}"
            raise UserError(f"prompt {row} has {ids}: use the tokenizer of the same run")
