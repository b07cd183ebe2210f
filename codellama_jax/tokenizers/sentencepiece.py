"""Llama's SentencePiece tokenizer with Code Llama's infilling sentinels.

Sentinels are ids above the pieces and never text: a document that contains "<PRE>" is encoded like
any other text. Ids equal those of the published files.

Unlike with SentencePiece, decoding returns any text exactly, including U+2581, SentencePiece's mark
for a space. A file whose options make that impossible encodes as SentencePiece does, and
`Tokenizer.limits` lists its losses.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import sentencepiece
from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import read_file, user_path, write_file
from codellama_jax.system.progress import Say, announced, silent
from codellama_jax.tokenizers import sentencepiece_file
from codellama_jax.tokenizers.sentinels import SENTINEL_ROWS
from codellama_jax.tokenizers.training import (
    MAX_TRAINING_CHARS,
    TRAINING_OPTIONS,
    sample,
    train_model,
)

SPACE_MARK = "▁".encode()  # SentencePiece encodes a space and U+2581 alike
MARK_PIECES = [f"<0x{byte:02X}>" for byte in SPACE_MARK]
FILE = "tokenizer.model"


@dataclass(frozen=True)
class Tokenizer:
    """Encodes text as token ids and decodes them. Made by `load` or `train`; picklable."""

    model: bytes = field(repr=False)  # the content of the file tokenizer.model
    pieces: int  # number of SentencePiece pieces without sentinels; ids of text are below it
    bos_id: int
    eos_id: int
    pre_id: int
    suf_id: int
    mid_id: int
    eot_id: int
    fingerprint: str  # SHA-256 of everything that decides ids
    limits: tuple[str, ...]  # options of the file that make text differ after decoding
    # SentencePiece with the file's options; without the space before a text; and one that also
    # keeps a space at the start of a decoded text.
    _processor: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _unprefixed: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _continuing: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _prefix: str = field(repr=False, compare=False)  # " " if the file adds a space, otherwise ""

    @property
    def vocab_size(self) -> int:
        """Returns the vocabulary size with sentinels: 32,016 for Llama 2's 32,000 pieces."""
        return self.pieces + SENTINEL_ROWS

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

        SentencePiece adds a space before any text. `leading_space=False` leaves it out, which is
        the encoding of middle and suffix of an infilling example (Code Llama, section 2.3).

        Raises UserError for a lone surrogate, which UTF-8 cannot represent.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            surrogate = f"{error.object[error.start]!a}"
            message = f"text holds a lone surrogate, {surrogate}, which is no character: remove it"
            raise UserError(message) from error
        if self.limits:
            return (self._processor if leading_space else self._unprefixed).encode(text)
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

    def save(self, path: epath.PathLike) -> None:
        """Writes the tokenizer.model that `load` reads; an interrupted write keeps the old file."""
        write_file(path, self.model)

    def __reduce__(self) -> tuple:
        # The processors are C++ objects: an unpickled tokenizer builds them from the file.
        return _tokenizer, (self.model, "the pickled tokenizer")


def load(path: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer.model. Raises UserError that names the kind of any other file."""
    file = user_path(path)
    if file.is_dir():
        raise UserError(f"cannot read the tokenizer {path}: {missing_in(file)}")
    try:
        model = read_file(file)
    except UserError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error}") from None
    return _tokenizer(model, str(path))


def missing_in(folder: epath.Path) -> str:
    """Returns the end of a message about `folder`, which was named in place of a file: the fix."""
    if (folder / FILE).exists():
        return f"it is a folder: name {folder / FILE}"
    for other in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        if (folder / other).exists():
            return (
                f"{folder} has {other} and no {FILE}: {sentencepiece_file.ONLY_SENTENCEPIECE}; "
                "take it from the model's publisher, or a model that has one"
            )
    return f"{folder} has no {FILE}: put it there"


def train(
    texts: Iterable[str],
    pieces: int,
    cache_dir: epath.PathLike,
    print_line: Say = silent,
) -> Tokenizer:
    """Returns a tokenizer trained with Llama 2's options, cached in `cache_dir`.

    The name of the cached file is a hash of everything that decides its content. The order of
    `texts` does not matter. If they have more than MAX_TRAINING_CHARS characters, a sample is used
    that depends on the texts only. `print_line` prints a line of progress.

    Raises UserError for texts without characters and for fewer than 300 pieces.
    """
    folder = user_path(cache_dir)
    with announced(print_line, "tokenizer: reading the corpus"):
        sampled = sample(texts, MAX_TRAINING_CHARS)
    recipe = {
        "pieces": pieces,
        "sentencepiece": sentencepiece.__version__,
        "texts": [digest for digest, _ in sampled],
        **TRAINING_OPTIONS,
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    path = folder / f"tokenizer-{key[:20]}.model"
    if path.exists():
        with contextlib.suppress(UserError):  # a damaged file is trained again
            return load(path)
    kept = [text for _, text in sampled]
    characters = f"{sum(map(len, kept)):,} characters"
    with announced(print_line, f"tokenizer: training {pieces:,} pieces on {characters}"):
        model = train_model(kept, pieces, print_line)
    write_file(path, model)
    print_line(f"tokenizer: {pieces:,} pieces from {characters} of {len(kept):,} documents")
    return _tokenizer(model, str(path))


def _tokenizer(model: bytes, name: str) -> Tokenizer:
    """Returns the tokenizer of the content of a file, which messages call `name`."""
    proto = sentencepiece_file.parse(model, name)
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
    return Tokenizer(
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
        _processor=processor,
        _unprefixed=unprefixed,
        _continuing=continuing,
        _prefix=" " if prefixed else "",
    )
