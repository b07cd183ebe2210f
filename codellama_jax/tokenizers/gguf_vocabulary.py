"""The tokenizer in the metadata of a GGUF file: read as this project's kinds.

`tokenizer.ggml.model` is gpt2 for byte-level BPE (tokens and merges), llama for SentencePiece
(pieces, scores and types). Both become the file that a run keeps.
"""

from __future__ import annotations

import re
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.system.console import warn
from codellama_jax.system.settings import Settings
from codellama_jax.tokenizers import byte_bpe, byte_level, gguf_splits, sentencepiece
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.byte_bpe_files import MARKERS, bos_template, dumped
from codellama_jax.tokenizers.sentencepiece_file import ModelProto, without_bos

PREFIX = "tokenizer.ggml."
CHAT_TEMPLATE = "tokenizer.chat_template"
# Types of tokens, equal to those of SentencePiece's pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
NO_TOKENIZER = (None, "none", "no_vocab")  # values of tokenizer.ggml.model
PADDING = re.compile(r"\[PAD\d+\]")  # how llama.cpp's converter names rows without a token
# The ids of prefix, suffix and middle: the key, and the one of older files.
INFILLING_KEYS = (
    ("fim_pre_token_id", "prefix_token_id"),
    ("fim_suf_token_id", "suffix_token_id"),
    ("fim_mid_token_id", "middle_token_id"),
)


def read(metadata: dict[str, Any], file: str) -> Tokenizer | None:
    """Returns the tokenizer of a file's metadata, None if it has none.

    Raises UserError naming the key that is damaged or of a kind that is not read.
    """
    settings = _settings(metadata, file)
    model = settings.values.get("model")
    if model in NO_TOKENIZER:
        return None
    if model == "gpt2":
        tokenizer: Tokenizer = byte_bpe.read(_tokenizer_json(settings, metadata), file)
    elif model == "llama":
        tokenizer = sentencepiece.read(_tokenizer_model(settings), file)
    else:
        kinds = "'gpt2' (byte-level BPE) or 'llama' (SentencePiece)"
        raise settings.error("model", f"{kinds}, or pass the tokenizer with --tokenizer")
    _check_infilling(settings, tokenizer)
    return tokenizer


def padding(metadata: dict[str, Any], file: str) -> dict[int, str]:
    """Returns the tokens, by id, that only fill up the vocabulary."""
    settings = _settings(metadata, file)
    if settings.values.get("model") in NO_TOKENIZER:
        return {}
    tokens, types = _tokens(settings)
    return {row: token for row, token in enumerate(tokens) if _is_padding(token, types[row])}


def _settings(metadata: dict[str, Any], file: str) -> Settings:
    values = {}
    for key, value in metadata.items():
        if key.startswith(PREFIX):
            values[key.removeprefix(PREFIX)] = value
    return Settings(file, values, PREFIX)


def _tokens(settings: Settings) -> tuple[list[str], list[int]]:
    """Returns the tokens and their types. Raises UserError unless tokens are different texts."""
    tokens = _list(settings, "tokens", str)
    ids: dict[str, int] = {}
    for row, token in enumerate(tokens):
        if token in ids:
            both = f"the rows {ids[token]:,} and {row:,} are both {token[:40]!r}"
            raise UserError(f"{settings.file}: {PREFIX}tokens must differ: {both}")
        ids[token] = row
    if not settings.has("token_type"):
        return tokens, [NORMAL] * len(tokens)
    return tokens, _list(settings, "token_type", int, len(tokens))


def _list(settings: Settings, key: str, kind: type, length: int = 0) -> list[Any]:
    """Returns a list of values of a type; `length` 0 allows any but none."""
    values = settings.values.get(key)
    is_list = isinstance(values, list) and all(isinstance(value, kind) for value in values)
    if not is_list or not values or (length and len(values) != length):
        kinds = {str: "texts", int: "whole numbers", float: "numbers"}
        count = f"{length:,} {kinds[kind]}, one per token" if length else kinds[kind]
        raise settings.error(key, f"a list of {count}")
    return values


def _token_id(settings: Settings, key: str, tokens: list[str]) -> int | None:
    """Returns the id of a special token, None if there is none."""
    row = settings.values.get(key)
    if row is None:
        return None
    # bool is a subclass of int: true must not pass for 1.
    if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(tokens):
        raise settings.error(key, f"a whole number from 0 to {len(tokens) - 1:,}")
    return row


def _is_padding(token: str, kind: int) -> bool:
    return kind == UNUSED and bool(PADDING.fullmatch(token))


def _tokenizer_json(settings: Settings, metadata: dict[str, Any]) -> bytes:
    """Returns the tokenizer.json of byte-level BPE."""
    tokens, types = _tokens(settings)
    # First, because it checks the name of the split, which also decides about BOS below.
    pre_tokenizer = gguf_splits.pre_tokenizer(settings)
    merges = []
    for merge in _list(settings, "merges", str):
        left, _, right = merge.partition(" ")
        if not left or not right:
            pairs = "pairs of tokens with a space between"
            raise settings.error("merges", f"{pairs}, not {merge!r:.40}")
        merges.append([left, right])
    vocab, added = {}, []
    for row, (token, kind) in enumerate(zip(tokens, types)):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            added.append(byte_level.added_token(token, row, special=kind != USER_DEFINED))
        # Rows of padding have no token: the embedding has more rows than the vocabulary.
        if not _is_padding(token, kind):
            vocab[token] = row
    eos = _token_id(settings, "eos_token_id", tokens)
    bos = _token_id(settings, "bos_token_id", tokens)
    markers: dict[str, Any] = {"kind": "", "pre": settings.values.get("pre")}
    # Without EOS the usual names are tried: see `byte_bpe_spec`.
    if eos is not None:
        markers["eos"] = tokens[eos]
        markers["bos"] = tokens[eos if bos is None else bos]
    if CHAT_TEMPLATE in metadata:
        markers["chat_template"] = metadata[CHAT_TEMPLATE]
    infilling = _infilling_ids(settings, tokens)
    if infilling:
        markers["infilling"] = [tokens[row] for row in infilling]
    # Files of Llama 3 have no such key: llama.cpp knows by the split that they begin with BOS.
    adds_bos = settings.values["pre"] in gguf_splits.WITH_BOS
    if settings.has("add_bos_token"):
        adds_bos = settings.flag("add_bos_token")
    adds_bos = adds_bos and bos is not None
    return dumped(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": bos_template(tokens[bos or 0], bos or 0) if adds_bos else None,
            "decoder": byte_level.pre_tokenizer("gpt2"),
            "model": {
                "type": "BPE",
                "ignore_merges": settings.values["pre"] in gguf_splits.UNMERGED,
                "vocab": vocab,
                "merges": merges,
            },
            MARKERS: markers,
        }
    )


def _tokenizer_model(settings: Settings) -> bytes:
    """Returns the tokenizer.model of SentencePiece."""
    tokens, types = _tokens(settings)
    scores = _list(settings, "scores", float, len(tokens))
    # llama.cpp knows a type 0, undefined, which SentencePiece lacks.
    if not all(NORMAL <= kind <= BYTE for kind in types):
        raise settings.error("token_type", f"a list of whole numbers from {NORMAL} to {BYTE}")
    # Later rows of padding have no ids of pieces after them, so that leaving them out moves none.
    count = len(tokens)
    while count and _is_padding(tokens[count - 1], types[count - 1]):
        count -= 1
    unknown = _token_id(settings, "unknown_token_id", tokens) or 0
    if types[unknown] != UNKNOWN:
        allowed = f"have the type {UNKNOWN} for the unknown token, row {unknown:,}"
        raise UserError(f"{settings.file}: {PREFIX}token_type must {allowed}")
    proto = ModelProto()
    for token, score, kind in zip(tokens[:count], scores, types):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = trainer.BPE
    # Byte pieces exist only in a vocabulary that falls back to them.
    trainer.byte_fallback = BYTE in types
    trainer.vocab_size = count
    trainer.unk_id, trainer.pad_id = unknown, -1
    # Llama's ids, which llama.cpp assumes as well where the file names none.
    for marker, default in (("bos", 1), ("eos", 2)):
        row = _token_id(settings, f"{marker}_token_id", tokens)
        row = default if row is None else row
        setattr(trainer, f"{marker}_id", row)
        setattr(trainer, f"{marker}_piece", tokens[min(row, count - 1)])
    trainer.unk_piece = tokens[unknown]
    normalizer.name = "identity"
    has_prefix = settings.has("add_space_prefix")
    # True is llama.cpp's default for SentencePiece.
    normalizer.add_dummy_prefix = settings.flag("add_space_prefix") if has_prefix else True
    normalizer.remove_extra_whitespaces = settings.flag("remove_extra_whitespaces")
    normalizer.escape_whitespaces = True
    model = proto.SerializeToString(deterministic=True)
    # Without the key texts begin with BOS, as in llama.cpp.
    if settings.has("add_bos_token") and not settings.flag("add_bos_token"):
        return without_bos(model, settings.file)
    return model


def _infilling_ids(settings: Settings, tokens: list[str]) -> list[int]:
    """Returns the ids of prefix, suffix and middle, [] unless the file has all three."""
    ids = []
    for key, older in INFILLING_KEYS:
        row = _token_id(settings, key if settings.has(key) else older, tokens)
        if row is not None:
            ids.append(row)
    return ids if len(ids) == len(INFILLING_KEYS) else []


def _check_infilling(settings: Settings, tokenizer: Tokenizer) -> None:
    """Warns if infilling here uses other tokens than the file names for it."""
    ids = _infilling_ids(settings, settings.values["tokens"])
    here = [tokenizer.pre_id, tokenizer.suf_id, tokenizer.mid_id]
    if ids and ids != here:
        rows = f"the ids {ids} for prefix, suffix and middle"
        warn(f"{settings.file} names {rows}: they are not used, infilling here uses {here}")
