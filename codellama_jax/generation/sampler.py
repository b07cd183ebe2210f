"""Generates from a batch of ragged prompts: prefill, then chunks of tokens, each one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from codellama_jax.config import ModelConfig, UserError
from codellama_jax.generation import decoder

CHUNK, STREAMED_CHUNK = 16, 4  # tokens a row between two looks at what was generated
BUCKET = 64  # prompts are padded to a power of two of at least this many tokens, so that few programs are compiled


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest; top_k 0 and top_p 1 leave all tokens in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise UserError("sampling needs temperature >= 0, 0 < top_p <= 1, top_k >= 0 and max_new_tokens >= 1")


def sample(logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
    """Draws a token a row. Of the top_k likeliest, those stay whose predecessors hold at most top_p of the mass."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    order_BV = jnp.argsort(logits_BV, axis=-1, descending=True, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    if sampling.top_k:
        sorted_BV = jnp.where(jnp.arange(sorted_BV.shape[1])[None] < sampling.top_k, sorted_BV, -jnp.inf)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    sorted_BV = jnp.where(before_BV <= sampling.top_p, sorted_BV, -jnp.inf)
    rank_B = jax.vmap(jax.random.categorical)(keys_B, sorted_BV)
    return jnp.take_along_axis(order_BV, rank_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _prefill(config: ModelConfig, params: dict, tokens_BT: jax.Array, lengths_B: jax.Array, new_slots: int):
    return decoder.prefill(config, params, tokens_BT, lengths_B, new_slots)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _chunk(config: ModelConfig, sampling: Sampling, vocab: int, chunk: int, weights: decoder.Weights, lengths_B, state):
    """Draws `chunk` tokens a row, reading each before the next. A row's keys depend on its index and the token's alone."""
    rows_B = jnp.arange(lengths_B.shape[0])
    allowed_V = jnp.arange(config.vocab_size) < vocab

    def draw(state, _):
        logits_BV, cache, count = state
        key_of = lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(sampling.seed), row), count)
        tokens_B = sample(jnp.where(allowed_V[None], logits_BV, -jnp.inf), sampling, jax.vmap(key_of)(rows_B))
        logits_BV, cache = decoder.step(config, weights, cache, tokens_B, lengths_B + count)
        return (logits_BV, cache, count + 1), tokens_B

    state, tokens_CB = jax.lax.scan(draw, state, length=chunk)
    return state, tokens_CB.T


def generate(
    config: ModelConfig,
    params: dict,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int] = (),
    *,
    vocab: int | None = None,
    stop: Callable[[int, list[int]], bool] | None = None,
    on_tokens: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
    """Returns the new ids of each prompt, up to and without the first of `stop_ids`, at most `max_new_tokens`.

    Ids from `vocab` on (rows that pad the vocabulary) are never drawn. `stop(row, ids)` is asked after each chunk whether a row
    has enough; `on_tokens(row, ids)` is told all of a row's ids so far, in smaller chunks. Raises UserError for an empty prompt.
    """
    if not all(len(prompt) for prompt in prompts):
        raise UserError("there is nothing to generate from: a prompt has no tokens")
    config, chunk = decoder.for_decoding(config), STREAMED_CHUNK if on_tokens else CHUNK
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    width = max(BUCKET, 1 << int(lengths_B.max() - 1).bit_length())
    tokens_BT = np.stack([np.pad(np.asarray(prompt, np.int32), (0, width - len(prompt))) for prompt in prompts])
    slots = -(-sampling.max_new_tokens // chunk) * chunk
    logits_BV, cache = _prefill(config, params, tokens_BT, lengths_B, slots)
    state, weights = (logits_BV, cache, jnp.zeros((), jnp.int32)), decoder.prepare(config, params)
    rows: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for _ in range(0, slots, chunk):
        state, tokens_BC = _chunk(config, sampling, vocab or config.vocab_size, chunk, weights, lengths_B, state)
        for row, ids in enumerate(np.asarray(tokens_BC).tolist()):
            if row not in open_rows:
                continue
            ended = next((i for i, token in enumerate(ids) if token in stop_ids), None)
            rows[row] = (rows[row] + ids[:ended])[: sampling.max_new_tokens]
            if on_tokens:
                on_tokens(row, rows[row])
            if ended is not None or (stop and stop(row, rows[row])):
                open_rows.discard(row)
        if not open_rows:
            break
    return rows
