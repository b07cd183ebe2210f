"""Prompts as padded batches of few shapes, and what a batch needs before it is read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError
from codellama_jax.generation.memory import check_weights_memory
from codellama_jax.generation.settings import CAPACITY
from codellama_jax.models import decoding
from codellama_jax.models.trained import TrainedModel


def fetched(x: jax.Array) -> np.ndarray:
    """Returns an array's values."""
    # Unlike `np.asarray`, this wait can be ended by Ctrl-C.
    return np.asarray(jax.block_until_ready(x))


def decoding_weights(model: TrainedModel) -> Any:
    """Returns the model's decoding weights.

    Raises UserError if they are still to be prepared and do not fit in memory.
    """
    if not model.is_prepared:
        # eval_shape computes the sizes without allocating anything.
        config = decoding.for_decoding(model.config)
        shapes = jax.eval_shape(functools.partial(decoding.prepare, config), model.params)
        check_weights_memory(bytes_per_device(shapes, decoding.weight_specs(config, shapes)))
    return model.decoding_weights


def bytes_per_device(shapes: Any, specs: Any) -> int:
    """Returns the bytes that arrays take on each device of the mesh in use.

    `specs` holds their PartitionSpecs: a tree like `shapes`, in which one may stand for a subtree.
    """
    mesh = jax.sharding.get_abstract_mesh().shape

    def size(spec: PartitionSpec, arrays: Any) -> int:
        shards = 1
        for axes in spec:
            for axis in (axes,) if isinstance(axes, str) else axes or ():
                shards *= mesh.get(axis, 1)
        # An axis of the mesh that is in no dim of the spec replicates the arrays.
        return sum(a.size * a.dtype.itemsize // shards for a in jax.tree.leaves(arrays))

    def is_spec(tree: Any) -> bool:
        return isinstance(tree, PartitionSpec)

    return sum(jax.tree.leaves(jax.tree.map(size, specs, shapes, is_leaf=is_spec)))


def bucket(n: int) -> int:
    """Rounds up to 64, 96, 128, 192, ..., so that few shapes are compiled."""
    # Two buckets per power of two keep the padding below a half and the number of programs small.
    power = max(64, 1 << (n - 1).bit_length())
    return power * 3 // 4 if power > 64 and n <= power * 3 // 4 else power


def piece_bucket(n: int) -> int:
    """Rounds the length of a piece up to 16, 64, 256, ...: pieces after a shared prefix are short,
    and each shape is compiled a second time for them."""
    size = 16
    while size < n:
        size *= 4
    return size


def padded(
    prompts: Sequence[Sequence[int]], shards: int = 1, size: int = 0, length: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens_BT and lengths_B of a padded batch.

    Sequences that only pad the batch hold one token.

    Args:
      prompts: ids.
      shards: B is a multiple of it.
      size: the least B; 0 takes the next power of two.
      length: T; 0 takes the bucket of the longest.
    """
    size = size or 1 << (len(prompts) - 1).bit_length()
    shape = size + -size % shards, length or bucket(max(map(len, prompts)))
    # A length of 1 and not 0 for padding sequences: attention over no key would be 0 / 0.
    tokens_BT, lengths_B = np.zeros(shape, np.int32), np.ones(shape[0], np.int32)
    for index, prompt in enumerate(prompts):
        tokens_BT[index, : len(prompt)] = prompt
        lengths_B[index] = len(prompt)
    return tokens_BT, lengths_B


def first_mask(
    first: Sequence[np.ndarray | None] | None, size: int, vocab: int
) -> np.ndarray | None:
    """Returns mask_BV of the ids named for each sequence; one without any may begin with all."""
    if first is None:
        return None
    mask_BV = np.ones((size, vocab), bool)
    for index, ids in enumerate(first):
        if ids is not None:
            # A mask over the vocabulary, since sequences allow different numbers of ids.
            mask_BV[index] = np.isin(np.arange(vocab), ids)
    return mask_BV


def check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raises UserError for a prompt that cannot be continued."""
    for index, prompt in enumerate(prompts):
        check_prompt(config, prompt, max_new_tokens, f"prompt {index}")


def check_prompt(
    config: ModelConfig, prompt: Sequence[int], max_new_tokens: int, name: str
) -> None:
    """Raises UserError, with the name of the prompt, for one that cannot be continued."""
    if not 0 < len(prompt) <= CAPACITY - max_new_tokens:
        most = CAPACITY - max_new_tokens
        allowed = f"it needs at least one and at most {most} beside {max_new_tokens} new ones"
        raise UserError(f"{name} has {len(prompt)} tokens: {allowed}")
    config.check_length(
        f"{name} with up to {max_new_tokens:,} new tokens", len(prompt) + max_new_tokens
    )
    # Refused on the host: a gather with an id out of range raises nothing on the device, and the
    # model would read another token without an error.
    if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
        ids = f"ids from {min(prompt)} to {max(prompt)} where the model has {config.vocab_size}"
        raise UserError(f"{name} has {ids}: use the tokenizer of the same run")
