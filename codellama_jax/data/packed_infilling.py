"""StarCoder's infilling examples: made in a packed sequence, document by document.

This is BigCode's published transform (Li et al. 2023; Megatron-LM's FIM data set), which differs
from Code Llama's in these points:

- It reads the documents of a packed sequence, among them the parts of a document that is longer
  than a sequence.
- In SPM order prefix and middle are encoded separately, as in PSM order, so the model learns a
  token boundary between them.
- There is no EOT: the document's own EOS, <|endoftext|>, ends the middle.
- The sequence grows by the sentinels, and what exceeds its length is dropped at its end.

    PSM: PRE prefix SUF suffix MID middle EOS
    SPM: PRE SUF suffix MID prefix middle EOS

SantaCoder has the same orders (Ben Allal et al. 2023). It spells the sentinels with hyphens, which
`tokenizers/byte_bpe_spec.py` finds. The published code fills a short sequence with <fim_pad>, here
it is padding without loss. Its optional mode for fragments is not implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

from codellama_jax.config import InfillingConfig
from codellama_jax.data.infilling import split, start_ids

BROKEN = "\ufffd"  # decoded from a part of a character, at the border of two parts of a document


def infill_sequence(
    tokenizer: Any, sequence: dict[str, np.ndarray], rng: Random, infilling: InfillingConfig
) -> dict[str, np.ndarray]:
    """Returns a packed sequence whose documents are transformed with probability `infilling.rate`.

    Args:
        tokenizer: encodes text and holds the sentinels' ids.
        sequence: arrays of length T by Grain's names: int32 `ids` [T, 3] (token, next token, index
            of the document), `ids_segment_ids` and `ids_positions`, and float32 `weights`.
        rng: the random numbers of this sequence.
        infilling: the rate, and the share of SPM order.
    """
    segments = sequence["ids_segment_ids"]
    length = len(segments)
    packed = {name: np.zeros_like(array) for name, array in sequence.items()}
    start = 0
    for number in range(1, int(segments.max(initial=0)) + 1):
        rows = sequence["ids"][segments == number]
        # Rows are (token, next token): the tokens and the target of the last row are the document
        # again.
        ids = [*rows[:, 0].tolist(), int(rows[-1, 1])]
        new_ids = np.array(_transformed(tokenizer, ids, rng, infilling), np.int32)
        # Training shifts ids by one to get targets.
        count = min(len(new_ids) - 1, length - start)
        part = slice(start, start + count)
        # Tokens and targets are the same ids shifted by one, also across the sentinels: the model
        # learns to generate MID's middle and the EOS after it.
        packed["ids"][part, 0] = new_ids[:count]
        packed["ids"][part, 1] = new_ids[1 : count + 1]
        # All tokens come from one document, also those of the sentinels.
        packed["ids"][part, 2] = rows[0, 2]
        packed["ids_segment_ids"][part] = number
        packed["ids_positions"][part] = np.arange(count)
        packed["weights"][part] = 1
        start += count
    return packed


def _transformed(
    tokenizer: Any, ids: Sequence[int], rng: Random, infilling: InfillingConfig
) -> list[int]:
    """Returns the ids of a document, or of a part of it, transformed or as they are."""
    head = start_ids(tokenizer)
    is_start = list(ids[: len(head)]) == head
    first = len(head) if is_start else 0
    # EOS stays at the end whatever the order of the parts is. A chunk of a long document has none.
    end = len(ids) - (ids[-1] == tokenizer.eos_id)
    if rng.random() >= infilling.rate:
        return list(ids)
    spm = rng.random() < infilling.spm
    # Only the first part of a document has the space that SentencePiece adds before a text.
    text = tokenizer.decode(ids[first:end], leading_space=is_start)
    # A part of a character cannot be encoded again.
    if BROKEN in text:
        return list(ids)
    prefix, middle, suffix = split(text, rng)
    prefix_ids = tokenizer.encode(prefix, leading_space=is_start)
    middle_ids = tokenizer.encode(middle, leading_space=False)
    suffix_ids = tokenizer.encode(suffix, leading_space=False)
    if spm:
        order = [tokenizer.pre_id, tokenizer.suf_id, *suffix_ids, tokenizer.mid_id, *prefix_ids]
    else:
        order = [tokenizer.pre_id, *prefix_ids, tokenizer.suf_id, *suffix_ids, tokenizer.mid_id]
    return [*ids[:first], *order, *middle_ids, *ids[end:]]
