"""The metadata of a GGUF file that describe a tokenizer, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import byte_bpe_spec, gguf_splits, sentencepiece_file
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.byte_bpe import ByteBpeTokenizer
from codellama_jax.tokenizers.byte_bpe_files import MARKERS
from codellama_jax.tokenizers.gguf_vocabulary import (
    CHAT_TEMPLATE,
    CONTROL,
    INFILLING_KEYS,
    NORMAL,
    PREFIX,
    UNUSED,
    USER_DEFINED,
)
from codellama_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from codellama_jax.tokenizers.transformers_files import with_sentinels


def metadata_of(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Returns the metadata of a tokenizer for a model with that many vocabulary entries.

    Raises UserError for a tokenizer that llama.cpp would not encode with alike.
    """
    if isinstance(tokenizer, ByteBpeTokenizer):
        values = _byte_bpe(tokenizer, vocab_size)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        values = _sentencepiece(tokenizer, vocab_size)
    else:
        raise TypeError(f"no metadata for {type(tokenizer)}")
    template = values.pop("chat_template", None)
    values |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    values["add_bos_token"] = tokenizer.adds_bos
    if tokenizer.pre_id < vocab_size:
        ids = (tokenizer.pre_id, tokenizer.suf_id, tokenizer.mid_id)
        for keys, row in zip(INFILLING_KEYS, ids):
            values |= dict.fromkeys(keys, row)
        # llama.cpp stops at it. Without it, an infilled middle would never end.
        values["eot_token_id"] = tokenizer.eot_id
    metadata = {f"{PREFIX}{key}": value for key, value in values.items()}
    return metadata | ({CHAT_TEMPLATE: template} if template else {})


def _byte_bpe(tokenizer: ByteBpeTokenizer, vocab_size: int) -> dict[str, Any]:
    spec = json.loads(tokenizer.model)
    vocabulary = byte_bpe_spec.vocabulary(spec, "the tokenizer")
    markers = spec.get(MARKERS, {})
    # Every row of the embedding needs a token: those that nothing below names stay padding.
    tokens = [f"[PAD{row}]" for row in range(vocab_size)]
    types = [UNUSED] * vocab_size
    entries = dict(byte_bpe_spec.entries(spec))
    # The model has rows for sentinels that the tokenizer's file does not list.
    if vocab_size > tokenizer.pieces and not tokenizer.lists_sentinels:
        entries |= byte_bpe_spec.sentinel_rows(tokenizer.pieces)
    for token, row in entries.items():
        tokens[row], types[row] = token, CONTROL
    for row in vocabulary.tokens.values():
        types[row] = NORMAL
    # Last, because a tokenizer.json may list runs of spaces among the merged tokens as well.
    for row in vocabulary.added.values():
        types[row] = USER_DEFINED
    merges = []
    for merge in spec["model"]["merges"]:
        merges.append(merge if isinstance(merge, str) else " ".join(merge))
    # A file that was imported keeps its name of the split: some have the same rule.
    pre = markers.get("pre") or gguf_splits.name_of(spec, "the tokenizer")
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "add_space_prefix": False,
        "chat_template": markers.get("chat_template"),
    }


def _sentencepiece(tokenizer: SentencePieceTokenizer, vocab_size: int) -> dict[str, Any]:
    proto = with_sentinels(tokenizer, vocab_size)
    trainer = proto.trainer_spec
    fix = "export it --to hf"
    if trainer.model_type != trainer.BPE:
        raise UserError(f"the tokenizer is not BPE, as SentencePiece in GGUF must be: {fix}")
    # GGUF has no field for these options, so that llama.cpp would encode other ids.
    limits = sentencepiece_file.limits(proto)
    if limits:
        raise UserError(f"the tokenizer cannot be written as GGUF ({limits[0]}): {fix}")
    pieces = proto.pieces[:vocab_size]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [piece.piece for piece in pieces],
        "scores": [piece.score for piece in pieces],
        "token_type": [piece.type for piece in pieces],
        "unknown_token_id": trainer.unk_id,
        "add_eos_token": False,
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
    }
