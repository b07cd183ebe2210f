"""Reads tokenizer.model files, checks them, and lists the text that they cannot represent."""

from __future__ import annotations

from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.errors import UserError
from codellama_jax.system.files import GIT_LFS_POINTER, reason
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS

# mypy does not see the classes that protobuf creates when this module is imported.
ModelProto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
# Marks a file whose texts do not begin with BOS. SentencePiece itself never adds BOS, so its format
# has no field for it; from 200 on, field numbers are free for others, and every reader skips them.
NO_BOS_FIELD = 200
# Distance of each sentinel's id from the number of text pieces. Code Llama's files list sentinels
# as pieces, Llama 2's file ends before them; the ids are the same.
SENTINELS = {"▁<PRE>": 7, "▁<SUF>": 8, "▁<MID>": 9, "▁<EOT>": 10}


def parse(data: bytes, name: str) -> Any:
    """Returns the ModelProto of a tokenizer.model, which messages call `name`.

    Raises UserError that names the kind of file if it is another one.
    """
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
        # A truncated file may be valid protobuf, but both fields are after the pieces.
        is_complete = proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")
    except DecodeError:
        is_complete = False
    if not is_complete:
        raise UserError(_kind_problem(data, name))
    _check_text(proto, name)
    for marker in ("bos", "eos"):
        marker_id = getattr(proto.trainer_spec, f"{marker}_id")
        if not 0 <= marker_id < len(proto.pieces):
            raise UserError(
                f"{name} has no {marker.upper()} piece "
                f"(trainer_spec.{marker}_id is {marker_id} and it "
                f"has {len(proto.pieces):,} pieces): documents begin with BOS and end with EOS, so "
                "take a tokenizer that was trained with both"
            )
    return proto


def _check_text(proto: Any, name: str) -> None:
    """Raises UserError for a piece or unknown marker whose text is not UTF-8, in a damaged file.

    protobuf returns bytes for such a field; without the check decoding would fail much later.
    """
    texts = {f"piece {i}": piece.piece for i, piece in enumerate(proto.pieces)}
    texts["trainer_spec.unk_surface"] = proto.trainer_spec.unk_surface
    for field, text in texts.items():
        if isinstance(text, bytes):
            raise UserError(
                f"{name} is damaged ({field} is not UTF-8: {text[:40]!r}): "
                "download tokenizer.model again"
            )


def _kind_problem(data: bytes, name: str) -> str:
    """Returns the message for a file that is not a tokenizer.model."""
    if data.startswith(GIT_LFS_POINTER):
        return f"{name} is a git-lfs pointer, not the file itself: run `git lfs pull`"
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"<":
        return f"{name} is an HTML or XML page: download the file itself"
    if data[:200].partition(b"\n")[0].endswith(b" 0") and data[:1].isalnum():
        return f"{name} is a tiktoken vocabulary, as Llama 3 has: name tokenizer.json"
    size = f"{len(data):,} bytes"
    return f"{name} is not a complete SentencePiece model ({size}): download tokenizer.model again"


def remove_sentinels(proto: Any, name: str) -> tuple[int, tuple[int, ...]]:
    """Deletes the sentinels from `proto`, so that no text is encoded as one.

    Returns the number of text pieces and the ids of PRE, SUF, MID and EOT. Raises UserError for
    sentinels that are not Code Llama's.
    """
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.piece in SENTINELS}
    if not ids:
        pieces = len(proto.pieces)
        return pieces, tuple(pieces + offset for offset in SENTINELS.values())
    pieces = len(proto.pieces) - SENTINEL_ROWS
    if len(ids) < len(SENTINELS) or min(ids.values()) < pieces:
        raise UserError(
            f"{name} holds infilling sentinels outside its last {SENTINEL_ROWS} pieces:"
            " use Code Llama's tokenizer.model"
        )
    del proto.pieces[pieces:]
    return pieces, tuple(ids[piece] for piece in SENTINELS)


def limits(proto: Any) -> tuple[str, ...]:
    """Returns the options with which decoding does not return the text exactly, with their losses.

    Each is one line for the user.
    """
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    losses = []
    if normalizer.precompiled_charsmap:
        losses.append(
            f"normalizer_spec.name is {normalizer.name!r}: characters are replaced before encoding"
        )
    if normalizer.remove_extra_whitespaces:
        losses.append(
            "normalizer_spec.remove_extra_whitespaces is true: indentation and spaces at the ends "
            "of a text are lost, so that an infilled middle cannot begin with a space"
        )
    if not normalizer.escape_whitespaces:
        losses.append("normalizer_spec.escape_whitespaces is false: U+2581 comes back as a space")
    if trainer.model_type == trainer.WORD:
        losses.append("trainer_spec.model_type is WORD: the space before an unknown word is U+2581")
    elif not any(piece.piece == "▁" for piece in proto.pieces):
        losses.append("no piece is a space: single spaces come back as U+2581")
    if not trainer.byte_fallback:
        losses.append(
            "trainer_spec.byte_fallback is false: characters without a piece become unknown"
        )
    if trainer.treat_whitespace_as_suffix:
        losses.append(
            "trainer_spec.treat_whitespace_as_suffix is true: a text ends with a space,"
            " so that no completion continues its last word"
        )
    return tuple(losses)


def without_bos(model: bytes, name: str) -> bytes:
    """Returns the content of a tokenizer.model, marked as one whose texts do not begin with BOS.

    Raises UserError like `parse`.
    """
    # A second mark would make another fingerprint.
    if not adds_bos(parse(model, name)):
        return model
    # A field that follows the message is a part of it. As `varint`: the field's number and type 0,
    # in 7 bits per byte from the lowest, and the value 1.
    tag = NO_BOS_FIELD << 3
    return model + bytes((tag & 0x7F | 0x80, tag >> 7, 1))


def adds_bos(proto: Any) -> bool:
    """Returns whether texts begin with BOS: in every file that is not marked otherwise."""
    return all(field.field_number != NO_BOS_FIELD for field in UnknownFieldSet(proto))


def is_llama(model: bytes) -> bool:
    """Returns whether the file `model` encodes as Llama's does.

    That is BPE with byte fallback, a space before a text, and no losses when decoding.
    """
    proto = parse(model, "the tokenizer")
    remove_sentinels(proto, "the tokenizer")
    trainer = proto.trainer_spec
    # User-defined symbols are matched before BPE runs, and in tokenizer.json they would not be.
    has_symbols = any(piece.type == piece.USER_DEFINED for piece in proto.pieces)
    is_bpe = trainer.model_type == trainer.BPE
    adds_space = proto.normalizer_spec.add_dummy_prefix
    return is_bpe and adds_space and not has_symbols and not limits(proto)


def processor(proto: Any, name: str, **normalizer: bool) -> sentencepiece.SentencePieceProcessor:
    """Returns SentencePiece's processor of `proto`, with fields of normalizer_spec replaced.

    Raises UserError if SentencePiece refuses the file, which messages call `name`.
    """
    changed = type(proto)()
    changed.CopyFrom(proto)
    for field, value in normalizer.items():
        setattr(changed.normalizer_spec, field, value)
    model = changed.SerializeToString(deterministic=True)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    # A message that quotes damaged text fails to decode and raises UnicodeDecodeError.
    except (RuntimeError, UnicodeDecodeError) as error:
        text = reason(error) if isinstance(error, RuntimeError) else ""
        detail = text.removeprefix("INTERNAL: ").rpartition("] ")[2].strip(". ")
        cause = f"SentencePiece refuses it, {detail}" if detail else "SentencePiece refuses it"
        raise UserError(f"{name} is damaged ({cause}): download tokenizer.model again") from error
