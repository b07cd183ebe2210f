"""Llama's SentencePiece tokenizer with Code Llama's infilling sentinels.

Sentinels are ids above the pieces and never text: a document that contains "<PRE>" is encoded like
any other text. Ids equal those of the published files.

Unlike with SentencePiece, decoding returns any text exactly, including U+2581, SentencePiece's mark
for a space. A file whose options make that impossible encodes as SentencePiece does, and
`limits` lists its losses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import sentencepiece
from etils import epath

from codellama_jax.system.progress import Say, silent
from codellama_jax.tokenizers import cache, sentencepiece_file
from codellama_jax.tokenizers.base import Tokenizer, utf8
from codellama_jax.tokenizers.training import (
    TRAINING_OPTIONS,
    train_model,
)

SPACE_MARK = "▁".encode()  # SentencePiece encodes a space and U+2581 alike
MARK_PIECES = [f"<0x{byte:02X}>" for byte in SPACE_MARK]
FILE = "tokenizer.model"


@dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """Made by `read` or `train`; its `model` is the content of a tokenizer.model."""

    file_name: ClassVar[str] = FILE
    marks_each_byte: ClassVar[bool] = True

    # SentencePiece with the file's options; without the space before a text; and one that also
    # keeps a space at the start of a decoded text.
    _processor: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _unprefixed: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _continuing: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _prefix: str = field(repr=False, compare=False)  # " " if the file adds a space, otherwise ""

    @property
    def text_ids(self) -> list[int]:
        """Returns the ids of pieces of text, without markers, bytes and unused pieces."""
        processor = self._processor
        ids = []
        for i in range(self.pieces):
            is_marker = processor.is_control(i) or processor.is_unknown(i)
            if not (is_marker or processor.is_byte(i) or processor.is_unused(i)):
                ids.append(i)
        return ids

    def encode(self, text: str, *, leading_space: bool = True) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS.

        SentencePiece adds a space before any text, except with `leading_space=False`.

        Raises UserError for a lone surrogate, which UTF-8 cannot represent.
        """
        data = utf8(text)
        if self.limits:
            processor = self._processor if leading_space else self._unprefixed
            # A model of type WORD takes the word "<s>" for BOS; here it is an unknown word.
            markers, unknown = (self.bos_id, self.eos_id), processor.unk_id()
            return [unknown if i in markers else i for i in processor.encode(text)]
        prefix = self._prefix.encode() if leading_space and text else b""
        # SentencePiece would encode U+2581 as a space. Here the three bytes of its UTF-8 form are
        # encoded as byte pieces, and the text between as usual, so that decoding returns both.
        parts = (prefix + data).split(SPACE_MARK)
        ids = self._unprefixed.encode(parts[0])
        mark_ids = self._unprefixed.piece_to_id(MARK_PIECES) if len(parts) > 1 else []
        for part in parts[1:]:
            ids += mark_ids
            if part:
                ids += self._unprefixed.encode(part)
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray, *, leading_space: bool = True) -> str:
        """Returns the text of `ids`, [length]; undoes `encode` with the same `leading_space`.

        Ids that are not text are dropped: BOS, EOS, sentinels, -1. Bytes that are not valid UTF-8,
        as after a truncation within a character, become U+FFFD.
        """
        ids = np.asarray(ids, np.int64)
        text_ids = ids[(ids >= 0) & (ids < self.pieces)].tolist()
        if self.limits and leading_space:
            return self._processor.decode(text_ids)
        text = self._continuing.decode(text_ids)
        # The space that `encode` added is one character, removed here and not by SentencePiece,
        # which would also remove a space that the text itself starts with.
        return text.removeprefix(self._prefix) if leading_space else text

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes of one id, which may be a part of a character; b"" if it is not text.

        Those of the ids of a text, joined, are the text in UTF-8 with the space that `encode` adds.
        """
        if 0 <= token < self.pieces and self._processor.is_byte(token):
            # Named by its byte, as <0xE6>: decoded alone it would become U+FFFD.
            return bytes.fromhex(self._processor.id_to_piece(token)[3:5])
        return self.decode([token], leading_space=False).encode()

    def __reduce__(self) -> tuple:
        # The processors are C++ objects: an unpickled tokenizer builds them from the file.
        return read, (self.model, "the pickled tokenizer")


def train(
    texts: Iterable[str],
    pieces: int,
    cache_dir: epath.PathLike,
    print_line: Say = silent,
) -> SentencePieceTokenizer:
    """Returns a tokenizer trained with Llama 2's options, cached in `cache_dir`.

    The name of the cached file is a hash of everything that decides its content. The order of
    `texts` does not matter. If they have more than MAX_TRAINING_CHARS characters, a sample is used
    that depends on the texts only. `print_line` prints a line of progress.

    Raises UserError for texts without characters and for fewer than 300 pieces.
    """
    options = {"pieces": pieces, "sentencepiece": sentencepiece.__version__, **TRAINING_OPTIONS}

    def build(kept: list[str]) -> bytes:
        return train_model(kept, pieces, print_line)

    return cache.trained(texts, pieces, options, "model", build, read, cache_dir, print_line)


def read(model: bytes, name: str) -> SentencePieceTokenizer:
    """Returns the tokenizer of the content of a file, which messages call `name`."""
    proto = sentencepiece_file.parse(model, name)
    entries = len(proto.pieces)
    pieces, sentinels = sentencepiece_file.remove_sentinels(proto, name)
    limits = sentencepiece_file.limits(proto)
    prefixed = proto.normalizer_spec.add_dummy_prefix
    build = sentencepiece_file.processor
    # `encode` adds the space itself where decoding is exact, so one processor is enough.
    processor = unprefixed = continuing = build(proto, name, add_dummy_prefix=False)
    if limits:
        processor = build(proto, name)
        spaces = {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
        continuing = build(proto, name, **spaces)
    proto.normalizer_spec.add_dummy_prefix = False
    decisive = proto.SerializeToString(deterministic=True) + repr(sentinels).encode()
    # Existing runs hold fingerprints of files that add a space, which do not mention it. So only a
    # file that adds none is marked.
    fingerprint = hashlib.sha256(decisive if prefixed else decisive + b" no prefix").hexdigest()
    pre_id, suf_id, mid_id, eot_id = sentinels
    return SentencePieceTokenizer(
        model=model,
        pieces=pieces,
        bos_id=processor.bos_id(),
        eos_id=processor.eos_id(),
        pre_id=pre_id,
        suf_id=suf_id,
        mid_id=mid_id,
        eot_id=eot_id,
        fingerprint=fingerprint,
        limits=limits,
        lists_sentinels=entries > pieces,
        adds_bos=sentencepiece_file.adds_bos(proto),
        _processor=processor,
        _unprefixed=unprefixed,
        _continuing=continuing,
        _prefix=" " if prefixed else "",
    )
