"""Loss of whole documents, and perplexity by context length on the same documents (after Code Llama, figure 4a)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.data.infilling import plain_ids
from codellama_jax.errors import UserError
from codellama_jax.generation.scoring import document_losses
from codellama_jax.tokenizers.sentencepiece import Tokenizer

LARGEST_LOSS = 100.0  # nats per token: of no model that has not diverged


def perplexity_by_length(
    run: Run, texts: Iterable[str], lengths: tuple[int, ...], rows: int
) -> dict[int, dict[str, float]]:
    """Reads the first `rows` texts of at least max(lengths) tokens, each as one document, once, at the longest length.

    For each length: `perplexity` of the first `length` tokens, `last_block`, that of the last quarter of them, `tokens` and
    `documents` read. Raises UserError naming the longest text if none is long enough.
    """
    documents = long_documents(run.tokenizer, texts, max(lengths), rows)
    losses_RT = np.stack(document_losses(run, documents)).astype(np.float64)
    return {length: _measures(losses_RT[:, :length]) for length in sorted(lengths)}


def _measures(losses_RT: np.ndarray) -> dict[str, float]:
    rows, length = losses_RT.shape
    if not losses_RT.mean() < LARGEST_LOSS:
        loss = f"{losses_RT.mean():.3g} nats per token"
        raise UserError(
            f"the loss is {loss}, so that perplexity is no number: the model has diverged"
        )
    last_block = losses_RT[:, -max(1, length // 4) :]
    return {
        "perplexity": math.exp(losses_RT.mean()),
        "last_block": math.exp(last_block.mean()),
        "tokens": rows * length,
        "documents": rows,
    }


def long_documents(
    tokenizer: Tokenizer, texts: Iterable[str], length: int, rows: int
) -> list[list[int]]:
    """Returns the first `length + 1` ids, BOS first, of the first `rows` texts that have as many; fewer if there are fewer."""
    found: list[list[int]] = []
    longest = 0
    for text in texts:
        most = (
            len(text.encode()) + 3
        )  # byte fallback: one id a byte, the space before any text, BOS and EOS
        if most <= min(length, longest):
            continue
        ids = plain_ids(tokenizer, text)
        longest = max(longest, len(ids) - 1)
        if len(ids) > length:
            found.append(ids[: length + 1])
        if len(found) == rows:
            break
    if not found:
        raise UserError(
            f"no validation document has the {length:,} tokens that perplexity_lengths asks for: the longest has {longest:,};"
            " ask for shorter lengths or add longer files"
        )
    return found
