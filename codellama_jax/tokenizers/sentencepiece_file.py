"""Reads tokenizer.model files: what they are, what they can represent, and what their text loses."""

from __future__ import annotations

import json
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.errors import UserError
from codellama_jax.system.files import GIT_LFS_POINTER, reason
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

# Rows above the pieces. Code Llama's files list the sentinels as pieces, Llama 2's file ends before.
SENTINELS = {"▁<PRE>": 7, "▁<SUF>": 8, "▁<MID>": 9, "▁<EOT>": 10}
ONLY_SENTENCEPIECE = "only SentencePiece files, usually named tokenizer.model, are read"


def parse(data: bytes, name: str) -> Any:
    """Parses a tokenizer.model. Raises UserError that says what the file is instead."""
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(data)
        # Both follow the pieces in the file.
        whole = proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")
    except DecodeError:
        whole = False
    if not whole:
        raise UserError(_what_it_is(data, name))
    _check_text(proto, name)
    for marker in ("bos", "eos"):
        row = getattr(proto.trainer_spec, f"{marker}_id")
        if not 0 <= row < len(proto.pieces):
            raise UserError(
                f"{name} has no {marker.upper()} piece (trainer_spec.{marker}_id is {row} and it "
                f"has {len(proto.pieces):,} pieces): documents begin with BOS and end with EOS, so "
                "take a tokenizer that was trained with both"
            )
    return proto


def _check_text(proto: Any, name: str) -> None:
    """Raises UserError for a piece, or the text of UNK, whose bytes a flipped bit has changed.

    protobuf returns bytes for a text field that is not UTF-8; decoding would fail much later.
    """
    texts = {f"piece {row}": piece.piece for row, piece in enumerate(proto.pieces)}
    texts["trainer_spec.unk_surface"] = proto.trainer_spec.unk_surface
    for field, text in texts.items():
        if isinstance(text, bytes):
            raise UserError(
                f"{name} is damaged ({field} is not UTF-8: {text[:40]!r}): "
                "download tokenizer.model again"
            )


def _what_it_is(data: bytes, name: str) -> str:
    if data.startswith(GIT_LFS_POINTER):
        return f"{name} is a git-lfs pointer, not the file itself: run `git lfs pull`"
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"<":
        return f"{name} is an HTML or XML page: download the file itself"
    if start == b"{":
        return f"{name} is {_json_kind(data)}: {ONLY_SENTENCEPIECE}; name that file of the model"
    if data[:200].partition(b"\n")[0].endswith(b" 0") and data[:1].isalnum():
        return f"{name} is a tiktoken vocabulary, as Llama 3 has: {ONLY_SENTENCEPIECE}"
    size = f"{len(data):,} bytes"
    return f"{name} is not a whole SentencePiece model ({size}): download tokenizer.model again"


def _json_kind(data: bytes) -> str:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return "JSON"
    return "a tokenizer.json of Hugging Face" if "model" in value else "JSON, but no tokenizer"


def remove_sentinels(proto: Any, name: str) -> tuple[int, tuple[int, ...]]:
    """Drops the rows that Code Llama appended, so that no text is encoded as a sentinel.

    Returns the number of text pieces and the ids of the sentinels.
    """
    rows = {piece.piece: row for row, piece in enumerate(proto.pieces) if piece.piece in SENTINELS}
    if not rows:
        pieces = len(proto.pieces)
        return pieces, tuple(pieces + offset for offset in SENTINELS.values())
    pieces = len(proto.pieces) - SENTINEL_ROWS
    if len(rows) < len(SENTINELS) or min(rows.values()) < pieces:
        raise UserError(
            f"{name} holds infilling sentinels outside its last {SENTINEL_ROWS} pieces: use Code Llama's tokenizer.model"
        )
    del proto.pieces[pieces:]
    return pieces, tuple(rows[piece] for piece in SENTINELS)


def limits(proto: Any) -> tuple[str, ...]:
    """Lists the properties by which text does not come back exactly, and what each loses."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    found = []
    if normalizer.precompiled_charsmap:
        found.append(
            f"normalizer_spec.name is {normalizer.name!r}: characters are replaced before encoding"
        )
    if normalizer.remove_extra_whitespaces:
        found.append(
            "normalizer_spec.remove_extra_whitespaces is true: indentation and spaces at the ends "
            "of a text are lost, so that an infilled middle cannot begin with a space"
        )
    if not normalizer.escape_whitespaces:
        found.append("normalizer_spec.escape_whitespaces is false: U+2581 comes back as a space")
    if trainer.model_type == trainer.WORD:
        found.append("trainer_spec.model_type is WORD: the space before an unknown word is U+2581")
    elif not any(piece.piece == "▁" for piece in proto.pieces):
        found.append("no piece is a space: single spaces come back as U+2581")
    if not trainer.byte_fallback:
        found.append(
            "trainer_spec.byte_fallback is false: characters without a piece become unknown"
        )
    if trainer.treat_whitespace_as_suffix:
        found.append(
            "trainer_spec.treat_whitespace_as_suffix is true: a text ends with a space, so that no completion continues its last word"
        )
    return tuple(found)


def is_llama(model: bytes) -> bool:
    """Returns whether a file encodes as Llama's: BPE, bytes, a space before text, text exact."""
    proto = parse(model, "the tokenizer")
    remove_sentinels(proto, "the tokenizer")
    trainer = proto.trainer_spec
    symbols = any(piece.type == piece.USER_DEFINED for piece in proto.pieces)
    bpe = trainer.model_type == trainer.BPE and proto.normalizer_spec.add_dummy_prefix
    return bpe and not symbols and not limits(proto)


def processor(proto: Any, name: str, **normalizer: bool) -> sentencepiece.SentencePieceProcessor:
    """Returns SentencePiece's processor of a file, with some fields of normalizer_spec replaced."""
    changed = type(proto)()
    changed.CopyFrom(proto)
    for field, value in normalizer.items():
        setattr(changed.normalizer_spec, field, value)
    model = changed.SerializeToString(deterministic=True)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, UnicodeDecodeError) as error:  # its message may quote damaged text
        text = reason(error) if isinstance(error, RuntimeError) else ""
        detail = text.removeprefix("INTERNAL: ").rpartition("] ")[2].strip(". ")
        cause = f"SentencePiece refuses it, {detail}" if detail else "SentencePiece refuses it"
        raise UserError(f"{name} is damaged ({cause}): download tokenizer.model again") from error
