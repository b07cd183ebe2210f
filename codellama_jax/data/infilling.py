"""Infilling examples: a document split into prefix, middle and suffix (Code Llama, section 2.3).

The order is prefix-suffix-middle (PSM) or suffix-prefix-middle (SPM). Sentinels are inserted as
token ids and never as text, so that a document that contains "<PRE>" cannot imitate one.

The paper does not publish where BOS and EOS are in such a document. Here BOS starts every
document, and EOT, not EOS, ends one that was split: the published generation code starts its prompt
with BOS and stops at EOT.

`InfillingConfig.form` selects the form of training examples; `packed_infilling.py` has StarCoder's.
A prompt is the same in all forms (`prompt_ids`), and a middle ends with EOT or EOS in all of them.

`start_ids` is the rule for vocabularies without BOS.
"""

from __future__ import annotations

from random import Random
from typing import Any

from codellama_jax.config import InfillingConfig

# Characters per token above which a document probably exceeds one sequence. It decides only which
# of two lengths is checked first, never the result.
MANY_CHARACTERS_PER_TOKEN = 3


def split(text: str, rng: Random) -> tuple[str, str, str]:
    """Splits `text` into (prefix, middle, suffix).

    Both positions are drawn independently and uniformly between characters, 0 and len(text)
    included, so each part may be empty.
    """
    # Over characters, not tokens (section 2.3): a model must also continue inside of a token.
    first, second = sorted(int(rng.random() * (len(text) + 1)) for _ in range(2))
    return text[:first], text[first:second], text[second:]


def infill_ids(tokenizer: Any, prefix: str, middle: str, suffix: str, spm: bool) -> list[int]:
    """Returns the token ids of a training example: `prompt_ids`, then the middle and EOT.

    Args:
        tokenizer: encodes text and holds the sentinels' ids.
        prefix: the text before the middle.
        middle: the text that the model learns to generate.
        suffix: the text after the middle.
        spm: whether the order is suffix-prefix-middle.
    """
    if spm:
        # No sentinel separates prefix and middle in SPM, so they are encoded as one text: a token
        # may span the boundary, and the model learns no artificial token boundary there.
        return [*prompt_ids(tokenizer, prefix + middle, suffix, spm), tokenizer.eot_id]
    return [
        *prompt_ids(tokenizer, prefix, suffix, spm),
        # SentencePiece adds a space before a text; the middle continues one and has none.
        *tokenizer.encode(middle, leading_space=False),
        tokenizer.eot_id,
    ]


def prompt_ids(tokenizer: Any, prefix: str, suffix: str, spm: bool) -> list[int]:
    """Returns the token ids from which a model generates the middle.

    PSM: BOS PRE prefix SUF suffix MID. SPM: BOS PRE SUF suffix MID prefix.
    """
    # As in the published code, the suffix is encoded without the space that SentencePiece adds.
    suffix_ids = tokenizer.encode(suffix, leading_space=False)
    if spm:
        return [
            *start_ids(tokenizer),
            tokenizer.pre_id,
            tokenizer.suf_id,
            *suffix_ids,
            tokenizer.mid_id,
            *tokenizer.encode(prefix),
        ]
    return [
        *start_ids(tokenizer),
        tokenizer.pre_id,
        *tokenizer.encode(prefix),
        tokenizer.suf_id,
        *suffix_ids,
        tokenizer.mid_id,
    ]


def start_ids(tokenizer: Any) -> list[int]:
    """Returns the ids before every document and prompt: BOS where the tokenizer adds one, or none.

    GPT-2's vocabulary and its descendants (Codex, CodeGeeX, StarCoder, Qwen) have one token,
    <|endoftext|>, which ends a document. Published prompts do not begin with it, and CodeGeeX
    trains no token that follows it, so here it never begins a document.
    """
    return [tokenizer.bos_id] if tokenizer.adds_bos else []


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the token ids of a document without infilling: BOS, if there is one, text, EOS."""
    return [*start_ids(tokenizer), *tokenizer.encode(text), tokenizer.eos_id]


def document_ids(
    tokenizer: Any, text: str, rng: Random, infilling: InfillingConfig, seq_len: int
) -> list[int]:
    """Returns the token ids of a training document, transformed for infilling or plain.

    The document is transformed with probability `infilling.rate` if the transformed ids fit one
    sequence. Training shifts ids by one to get targets, so `seq_len + 1` ids fit.

    Args:
        tokenizer: encodes text and holds the sentinels' ids.
        text: the document.
        rng: the random numbers of this document.
        infilling: the rate, and the share of SPM order.
        seq_len: tokens per sequence.
    """
    # Form `starcoder` transforms packed sequences instead.
    if infilling.form == "starcoder" or rng.random() >= infilling.rate:
        return plain_ids(tokenizer, text)
    spm = rng.random() < infilling.spm
    # Encoding takes most of the time. A long document most likely stays plain, so its plain ids
    # come first, and the split is tried only if they fit after all.
    is_long = len(text) > MANY_CHARACTERS_PER_TOKEN * seq_len
    plain = plain_ids(tokenizer, text) if is_long else []
    if len(plain) <= seq_len + 1:
        ids = infill_ids(tokenizer, *split(text, rng), spm)
        if len(ids) <= seq_len + 1:
            return ids
    return plain or plain_ids(tokenizer, text)
