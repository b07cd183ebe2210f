"""Log-probabilities of new tokens, and of the most likely alternatives, computed after them.

One forward pass reads the prompt with its new tokens, as in scoring: decoding itself keeps no
logits. With quantized weights or another dtype of decoding they differ in their last digits from
those that the tokens were drawn from.

Dims: M new tokens and one, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codellama_jax.generation.batches import bucket
from codellama_jax.generation.scoring import last_logits
from codellama_jax.models.trained import TrainedModel
from codellama_jax.serving.texts import Text, text_of
from codellama_jax.tokenizers.base import Tokenizer

MOST_TOKENS = 512  # new tokens per sequence, which bounds the logits in memory
MOST_TOP = 20  # alternatives per token


class TokenLogprob(NamedTuple):
    """A new token, its log-probability in nats, and the most likely tokens with theirs."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


def score(
    model: TrainedModel, prompt: Sequence[int], new: Sequence[int], top: int
) -> list[TokenLogprob]:
    """Returns the log-probability of each of the new ids after a prompt, and of `top` others."""
    if not new:
        return []
    # A bucket, so that few lengths are compiled.
    count = bucket(len(new) + 1)
    logits_MV = last_logits(model, [[*prompt, *new]], count)[0]
    # Probabilities are over the ids that can be drawn, as in decoding: padding of the embedding is
    # left out of the normalisation.
    vocab = min(model.config.vocab_size, model.tokenizer.vocab_size)
    # Row m holds the logits after all but the last m ids: reversed, they precede each new id.
    logits_MV = logits_MV[1 : len(new) + 1, :vocab][::-1]
    log_p_MV = logits_MV - np.logaddexp.reduce(logits_MV, axis=-1, keepdims=True)
    scored = []
    for token, log_p_V in zip(new, log_p_MV):
        ids = np.argsort(-log_p_V, kind="stable")[:top]
        alternatives = [(int(i), float(log_p_V[i])) for i in ids]
        scored.append(TokenLogprob(token, float(log_p_V[token]), alternatives))
    return scored


def mean(scored: Sequence[TokenLogprob]) -> float:
    """Returns the mean log-probability per token, by which the best of several texts is chosen."""
    return float(np.mean([token.logprob for token in scored])) if scored else -np.inf


def piece(tokenizer: Tokenizer, token: int) -> str:
    """Returns the text of one token; a part of a character is U+FFFD."""
    return tokenizer.decode([token], leading_space=False)


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[dict]:
    """Returns ids with their texts, or the bytes of a part of a character, as llama.cpp does."""
    # Each id is decoded once: a text may repeat it a million times.
    texts = {token: _text_or_bytes(tokenizer.token_bytes(token)) for token in set(tokens)}
    return [{"id": token, "piece": texts[token]} for token in tokens]


def _text_or_bytes(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def legacy(
    tokenizer: Tokenizer, scored: Sequence[TokenLogprob], text: Text, start: int
) -> dict[str, list]:
    """Returns the log-probabilities of a completion, as /v1/completions lays them out.

    Args:
      tokenizer: the model's.
      scored: of all new tokens; those after the end of a truncated text are left out.
      text: the completion.
      start: characters before it in the answer.
    """
    # A stop string may end the text in the middle of a token; later tokens are not in the answer.
    is_truncated = text.kept != text_of(text.prompt, text.ids)
    laid_out: dict[str, list] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for index, token in enumerate(scored):
        # Decoded from the start each time, because a token's own text may be half a character.
        offset = len(text_of(text.prompt, text.ids[:index]))
        if is_truncated and offset >= len(text.kept):
            break
        name = piece(tokenizer, token.id)
        laid_out["tokens"].append(name)
        laid_out["token_logprobs"].append(token.logprob)
        top: dict[str, float] = {}
        for i, logprob in token.top:
            # The layout maps texts to numbers, and two tokens may have equal texts: the more likely
            # one stays.
            top.setdefault(piece(tokenizer, i), logprob)
        laid_out["top_logprobs"].append(top)
        laid_out["text_offset"].append(start + offset)
    return laid_out


def listed(tokenizer: Tokenizer, scored: Sequence[TokenLogprob]) -> list[dict]:
    """Returns the log-probabilities as chats and llama.cpp's completions lay them out."""
    entries = []
    for token in scored:
        top = [_entry(tokenizer, i, logprob) for i, logprob in token.top]
        entries.append(_entry(tokenizer, token.id, token.logprob) | {"top_logprobs": top})
    return entries


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict:
    # Bytes of the token, not of its text: a client that joins those of all tokens gets the answer,
    # also where a character is several tokens.
    data = list(tokenizer.token_bytes(token))
    return {"id": token, "token": piece(tokenizer, token), "bytes": data, "logprob": logprob}
