"""Infilling examples: a document cut into prefix, middle and suffix, in PSM or SPM order (Code Llama, section 2.3).

Sentinels are ids, never text. Where BOS and EOS go around such a document is not published; here BOS opens every
document and EOT, not EOS, closes one that was cut: generation begins with BOS and stops at EOT in the published code.
"""

from __future__ import annotations

from random import Random
from typing import Any

from codellama_jax.config import InfillingConfig

LONG = 3  # characters a token, above which a document is likely too long for a row: only the order of two checks hangs on it


def split(text: str, rng: Random) -> tuple[str, str, str]:
    """Cuts a text into (prefix, middle, suffix) at two characters drawn independently and uniformly, both ends included."""
    first, second = sorted(int(rng.random() * (len(text) + 1)) for _ in range(2))
    return text[:first], text[first:second], text[second:]


def infill_ids(tokenizer: Any, prefix: str, middle: str, suffix: str, spm: bool) -> list[int]:
    """Returns the ids of a training example: `prompt_ids`, then the middle and EOT; in SPM prefix and middle are encoded as one text."""
    if spm:
        return [*prompt_ids(tokenizer, prefix + middle, suffix, spm), tokenizer.eot_id]
    return [
        *prompt_ids(tokenizer, prefix, suffix, spm),
        *tokenizer.encode(middle, leading_space=False),
        tokenizer.eot_id,
    ]


def prompt_ids(tokenizer: Any, prefix: str, suffix: str, spm: bool) -> list[int]:
    """Returns the ids to generate a middle from: BOS PRE prefix SUF suffix MID, or in SPM BOS PRE SUF suffix MID prefix."""
    suffix_ids = tokenizer.encode(suffix, leading_space=False)
    if spm:
        return [
            tokenizer.bos_id,
            tokenizer.pre_id,
            tokenizer.suf_id,
            *suffix_ids,
            tokenizer.mid_id,
            *tokenizer.encode(prefix),
        ]
    return [
        tokenizer.bos_id,
        tokenizer.pre_id,
        *tokenizer.encode(prefix),
        tokenizer.suf_id,
        *suffix_ids,
        tokenizer.mid_id,
    ]


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids of a document that is read from left to right: BOS, text, EOS."""
    return [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def document_ids(
    tokenizer: Any, text: str, rng: Random, infilling: InfillingConfig, seq_len: int
) -> list[int]:
    """Returns the ids of a training document, cut for infilling at the configured rate if it then fits one row of `seq_len` tokens.

    A row holds an id and its successor in each place, so `seq_len + 1` ids fit. A longer document stays plain.
    """
    if rng.random() >= infilling.rate:
        return plain_ids(tokenizer, text)
    spm = rng.random() < infilling.spm
    plain = plain_ids(tokenizer, text) if len(text) > LONG * seq_len else []
    if len(plain) <= seq_len + 1:
        ids = infill_ids(tokenizer, *split(text, rng), spm)
        if len(ids) <= seq_len + 1:
            return ids
    return plain or plain_ids(tokenizer, text)
