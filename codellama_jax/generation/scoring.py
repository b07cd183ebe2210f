"""Teacher-forced scoring: losses and logits of given ids, one forward pass per batch.

It reads the training parameters in the config's compute dtype, as the validation loss does.

Dims: B sequences, T positions, D features, V vocabulary entries, M ends of one sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from codellama_jax.config import ModelConfig
from codellama_jax.models.family import family_of, output_head
from codellama_jax.models.layers import length_shards
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import loss_specs, on_mesh_of
from kernels.cross_entropy import token_losses

# Per forward pass, which bounds its memory.
TOKENS = 16_384
MOST_LOGITS = 64  # sequences of a pass that returns logits
LOGITS = 2**26  # of a pass that returns the most likely ids: 256 MB


def document_losses(model: TrainedModel, documents: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns -log p of every id after the first of each document, given those before it.

    In nats, fp32 [len(document) - 1].
    """
    losses: list[np.ndarray] = []
    with on_mesh_of(model.params):
        # N ids have N - 1 losses: the last id is a target only, hence `extra=1` below.
        longest = max(map(len, documents)) - 1
        model.config.check_length("the longest document", longest)
        for batch, ids_BT in _batches(documents, longest, len(documents), extra=1):
            ends_B = _ends(batch, len(ids_BT)) - 1
            losses_BT = _fetched(
                _losses(model.config, model.params, ids_BT[:, :-1], ids_BT[:, 1:], ends_B)
            )
            losses += [losses_T[: len(ids) - 1] for losses_T, ids in zip(losses_BT, batch)]
    return losses


def last_logits(model: TrainedModel, prompts: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """Returns fp32 logits_BMV after all but the last m = 0, 1, ..., count - 1 ids of a prompt."""
    parts = []
    with on_mesh_of(model.params):
        longest = max(map(len, prompts))
        model.config.check_length("the longest prompt", longest)
        for batch, ids_BT in _batches(prompts, longest, MOST_LOGITS):
            ends_B = _ends(batch, len(ids_BT))
            logits_BMV = _last_logits(model.config, count, model.params, ids_BT, ends_B)
            parts.append(_fetched(logits_BMV)[: len(batch)])
    return np.concatenate(parts)


def last_choices(
    model: TrainedModel, documents: Sequence[Sequence[int]], count: int
) -> list[np.ndarray]:
    """Returns whether each of the last `count` ids of a document is the most likely one there.

    bool [min(count, len(document) - 1)], in the order of the ids, each given all ids before it.
    """
    choices: list[np.ndarray] = []
    with on_mesh_of(model.params):
        # The logits of a pass are as large as those of MOST_LOGITS short prompts.
        most = max(1, min(len(documents), LOGITS // (count * model.config.vocab_size)))
        longest = max(map(len, documents)) - 1
        model.config.check_length("the longest document", longest)
        for batch, ids_BT in _batches(documents, longest, most, extra=1):
            ends_B = np.maximum(_ends(batch, len(ids_BT)) - 1, 0)
            chosen_BM = _fetched(
                _last_choices(model.config, count, model.params, ids_BT[:, :-1], ends_B)
            )
            for ids, chosen_M in zip(batch, chosen_BM):
                # `chosen_M` runs backwards from the end of the document, so it is reversed to match
                # the ids. Documents shorter than `count` repeat position 0 in the columns that are
                # dropped here.
                kept = min(count, len(ids) - 1)
                choices.append(chosen_M[:kept][::-1] == np.array(ids[len(ids) - kept :]))
    return choices


def _batches(
    sequences: Sequence[Sequence[int]], longest: int, most: int, extra: int = 0
) -> Iterator[tuple[Sequence[Sequence[int]], np.ndarray]]:
    """Yields sequences and their ids_BT, padded so that few shapes are compiled.

    Args:
      sequences: ids.
      longest: positions that the model reads of the longest one.
      most: sequences per batch, fewer where TOKENS bounds them.
      extra: columns of ids_BT beyond the positions that the model reads.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    # Both axes shard the batch dim of activations, and "context" shards their length.
    shards = shape.get("data", 1) * shape.get("fsdp", 1)
    length = _round_up(_padded_length(longest), length_shards())
    size = min(_round_up(most, shards), _round_up(max(1, TOKENS // length), shards))
    # As many batches, but of about equal size: 16 sequences as 8 and 8, not as 14 and 2, whose
    # padding to 14 costs as much as sequences do.
    passes = -(-len(sequences) // size)
    size = min(size, _round_up(-(-len(sequences) // passes), shards))
    for start in range(0, len(sequences), size):
        batch = sequences[start : start + size]
        ids_BT = np.zeros((size, length + extra), np.int32)
        for index, ids in enumerate(batch):
            ids_BT[index, : len(ids)] = ids
        yield batch, ids_BT


def _padded_length(n: int) -> int:
    """Rounds up to eighths of a power of two, at least 64.

    All sequences of a call have one length, so that finer lengths than those of `batches.bucket`
    compile no more programs: 1,026 tokens are padded to 1,152 instead of 1,536.
    """
    power = 1 << max(0, n.bit_length() - 1)
    return _round_up(max(1, n), max(64, power // 8))


def _ends(batch: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """Returns the index of the last id of each sequence, int32 [size], 0 for those that pad it."""
    ends_B = np.zeros(size, np.int32)
    ends_B[: len(batch)] = [len(ids) - 1 for ids in batch]
    return ends_B


def _fetched(x: jax.Array) -> np.ndarray:
    """Returns the values of an array that may be sharded over several hosts."""
    if not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    config: ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    targets_BT: jax.Array,
    ends_B: jax.Array,
) -> jax.Array:
    """Returns -log p(target) in nats of every token, fp32 (B, T).

    Args:
      config: the model.
      params: the parameters.
      tokens_BT: padded ids; a sequence is one document.
      targets_BT: the ids after them.
      ends_B: the position of the last token of each sequence.
    """
    # The fused loss never holds the (tokens x vocabulary) logits.
    x_BTD = _hidden(config, params, tokens_BT, ends_B)
    return token_losses(x_BTD, output_head(params), targets_BT, **loss_specs())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _last_logits(
    config: ModelConfig, count: int, params: dict, tokens_BT: jax.Array, ends_B: jax.Array
) -> jax.Array:
    """Returns fp32 logits_BMV at the positions ends_B - m, or 0 where there are fewer.

    Args:
      config: the model.
      count: M, static.
      params: the parameters.
      tokens_BT: padded ids.
      ends_B: the position of the last id of each sequence.
    """
    return _logits_before(config, count, params, tokens_BT, ends_B)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _last_choices(
    config: ModelConfig, count: int, params: dict, tokens_BT: jax.Array, ends_B: jax.Array
) -> jax.Array:
    """Returns the most likely ids, int32 (B, M), where `_last_logits` returns logits.

    Args: as for `_last_logits`.
    """
    logits_BMV = _logits_before(config, count, params, tokens_BT, ends_B)
    return jnp.argmax(logits_BMV, axis=-1).astype(jnp.int32)


def _logits_before(
    config: ModelConfig, count: int, params: dict, tokens_BT: jax.Array, ends_B: jax.Array
) -> jax.Array:
    x_BTD = _hidden(config, params, tokens_BT, ends_B)
    # The M positions are picked before the head, whose matmul and logits for all T positions
    # would be T / M times as large.
    positions_BM = jnp.maximum(ends_B[:, None] - jnp.arange(count)[None], 0)
    x_BMD = jnp.take_along_axis(x_BTD, positions_BM[:, :, None], axis=1)
    module = family_of(config).module(config)
    return cast(jax.Array, module.apply({"params": params}, x_BMD, method="unembed"))


def _hidden(
    config: ModelConfig, params: dict, tokens_BT: jax.Array, ends_B: jax.Array
) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    family, segment_ids_BT = family_of(config), None
    if family.depends_on_length(config):
        # RoPE that is scaled by the length must count the document and not its padding. For other
        # families padding needs no mask: attention is causal, and the padding comes last.
        segment_ids_BT = (positions_BT <= ends_B[:, None]).astype(jnp.int32)
    inputs = (tokens_BT, positions_BT, segment_ids_BT)
    x_BTD = family.module(config).apply({"params": params}, *inputs, method="hidden")
    return cast(jax.Array, x_BTD)


def _round_up(number: int, multiple: int) -> int:
    return multiple * -(-number // multiple)
