"""Loss of whole documents, and perplexity by context length on the same documents (after Code Llama, figure 4a)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.config import ModelConfig
from codellama_jax.data.infilling import plain_ids
from codellama_jax.errors import UserError
from codellama_jax.generation.sampler import bucket
from codellama_jax.models.layers import length_shards
from codellama_jax.models.llama.model import Llama
from codellama_jax.sharding.mesh import on_mesh_of
from codellama_jax.tokenizers.sentencepiece import Tokenizer
from codellama_jax.training.objectives import losses_of_tokens

LARGEST_LOSS = 700.0  # nats per token: exp() of more is no float64
TOKENS = 16_384  # read at once: what bounds the memory of a forward pass


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
    last_block = losses_RT[:, -max(1, length // 4) :]
    for loss in (losses_RT.mean(), last_block.mean()):
        if not loss < LARGEST_LOSS:
            problem = "perplexity is no number: the model has diverged"
            raise UserError(f"the loss is {loss:.3g} nats per token, so that {problem}")
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


def document_losses(run: Run, documents: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns -log p in nats of every id after the first of each document, given those before it: fp32 [len(document) - 1]."""
    with on_mesh_of(run.params):
        return _document_losses(run, documents)


def _document_losses(run: Run, documents: Sequence[Sequence[int]]) -> list[np.ndarray]:
    mesh = jax.sharding.get_abstract_mesh().shape
    shards = mesh.get("data", 1) * mesh.get("fsdp", 1)
    length = _round_up(bucket(max(map(len, documents)) - 1), length_shards())
    rows = min(_round_up(len(documents), shards), _round_up(max(1, TOKENS // length), shards))
    losses: list[np.ndarray] = []
    for start in range(0, len(documents), rows):
        some = documents[start : start + rows]
        ids_BT = np.zeros((rows, length + 1), np.int32)
        for row, ids in enumerate(some):
            ids_BT[row, : len(ids)] = ids
        losses_BT = _losses(run.model, run.params, ids_BT[:, :-1], ids_BT[:, 1:])
        here = (
            losses_BT
            if losses_BT.is_fully_addressable
            else multihost_utils.process_allgather(losses_BT, tiled=True)
        )
        losses += [losses_T[: len(ids) - 1] for losses_T, ids in zip(np.asarray(here), some)]
    return losses


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    config: ModelConfig, params: dict, tokens_BT: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    return losses_of_tokens(Llama(config), params, tokens_BT, targets_BT)


def _round_up(number: int, multiple: int) -> int:
    return multiple * -(-number // multiple)
