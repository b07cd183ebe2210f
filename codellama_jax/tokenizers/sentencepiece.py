"""Llama's SentencePiece tokenizer with Code Llama's infilling sentinels.

Sentinels are ids above the pieces, never text: a text that spells one is encoded as any other text.
Ids equal those of the published files. Unlike SentencePiece, any text comes back exactly, U+2581
(SentencePiece's mark for a space) included. Files of other tokenizers encode as SentencePiece does;
`Tokenizer.limits` lists what their text loses.
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

SPACE_MARK = "▁".encode()  # SentencePiece writes a space as U+2581 and cannot tell the two apart
MARK_PIECES = [f"<0x{byte:02X}>" for byte in SPACE_MARK]
FILE = "tokenizer.model"


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back; made by `load` or `train`. Picklable."""

    model: bytes = field(repr=False)  # the tokenizer.model file
    pieces: int  # SentencePiece pieces without sentinels: ids of text lie below
    bos_id: int
    eos_id: int
    pre_id: int
    suf_id: int
    mid_id: int
    eot_id: int
    fingerprint: str  # sha256 of everything that decides ids
    limits: tuple[str, ...]  # the file's properties by which text does not come back exactly
    # The processor of the file itself; then those that add no space before text, of which the last
    # keeps a space that begins a decoded text.
    _processor: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _unprefixed: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _continuing: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)
    _prefix: str = field(repr=False, compare=False)  # what the file puts before any text

    @property
    def vocab_size(self) -> int:
        """Vocabulary entries of a model with infilling: 32,016 for Llama 2's 32,000 pieces."""
        return self.pieces + SENTINEL_ROWS

    @property
    def text_ids(self) -> list[int]:
        """Returns the ids of pieces of text: no markers, bytes or unused pieces."""
        p = self._processor
        ids = []
        for i in range(self.pieces):
            if not (p.is_control(i) or p.is_unknown(i) or p.is_byte(i) or p.is_unused(i)):
                ids.append(i)
        return ids

    def encode(self, text: str, *, leading_space: bool = True) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS.

        `leading_space=False` leaves out the space that SentencePiece puts before any text: the
        encoding of an infilling example's middle and suffix (Code Llama, section 2.3).
        Raises UserError for a lone surrogate.
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
        parts = (prefix + data).split(SPACE_MARK)
        ids = self._unprefixed.encode(parts[0])
        mark_ids = self._unprefixed.piece_to_id(MARK_PIECES) if len(parts) > 1 else []
        for part in parts[1:]:
            ids += mark_ids
            if part:
                ids += self._unprefixed.encode(part)
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray, *, leading_space: bool = True) -> str:
        """Undoes `encode` with the same flag. Drops ids that are not text: BOS, sentinels, -1.

        ids: [length]. Bytes that are not UTF-8, as in the middle of a character, become U+FFFD.
        """
        ids = np.asarray(ids, np.int64)
        text_ids = ids[(ids >= 0) & (ids < self.pieces)].tolist()
        if self.limits and leading_space:
            return self._processor.decode(text_ids)
        text = self._continuing.decode(text_ids)
        return text.removeprefix(self._prefix) if leading_space else text

    def save(self, path: epath.PathLike) -> None:
        """Writes the tokenizer.model that `load` reads; an interrupted write keeps the old file."""
        write_file(path, self.model)

    def __reduce__(self) -> tuple:
        return _tokenizer, (self.model, "the pickled tokenizer")


def load(path: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer.model. Raises UserError for any other file, naming what it is."""
    file = user_path(path)
    if file.is_dir():
        raise UserError(f"cannot read the tokenizer {path}: {missing_in(file)}")
    try:
        model = read_file(file)
    except UserError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error}") from None
    return _tokenizer(model, str(path))


def missing_in(folder: epath.Path) -> str:
    """Returns what a user does about a folder in which no tokenizer.model is read."""
    if (folder / FILE).exists():
        return f"it is a folder: name {folder / FILE}"
    others = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    found = [name for name in others if (folder / name).exists()]
    if found:
        return (
            f"{folder} has {found[0]} and no {FILE}: {sentencepiece_file.ONLY_SENTENCEPIECE}; "
            "take it from the model's publisher, or a model that has one"
        )
    return f"{folder} has no {FILE}: put it there"


def train(
    texts: Iterable[str],
    pieces: int,
    cache_dir: epath.PathLike,
    say: Say = silent,
) -> Tokenizer:
    """Trains a tokenizer as Llama 2's was, or finds it in `cache_dir` under a hash of its inputs.

    The order of `texts` does not matter. Of more than MAX_TRAINING_CHARS a sample is used, which
    depends on the texts alone. Raises UserError for texts without characters or under 300 pieces.
    """
    folder = user_path(cache_dir)
    with announced(say, "tokenizer: reading the corpus"):
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
    with announced(say, f"tokenizer: training {pieces:,} pieces on {characters}"):
        model = train_model(kept, pieces, say)
    write_file(path, model)
    say(f"tokenizer: {pieces:,} pieces from {characters} of {len(kept):,} documents")
    return _tokenizer(model, str(path))


def _tokenizer(model: bytes, name: str) -> Tokenizer:
    proto = sentencepiece_file.parse(model, name)
    pieces, sentinels = sentencepiece_file.remove_sentinels(proto, name)
    limits = sentencepiece_file.limits(proto)
    prefixed = proto.normalizer_spec.add_dummy_prefix
    build = sentencepiece_file.processor
    processor = unprefixed = continuing = build(proto, name, add_dummy_prefix=False)
    if limits:
        processor = build(proto, name)
        spaces = {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
        continuing = build(proto, name, **spaces)
    proto.normalizer_spec.add_dummy_prefix = False
    decisive = proto.SerializeToString(deterministic=True) + repr(sentinels).encode()
    # The fingerprints of files with a prefix are in existing runs, and do not mention it.
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
