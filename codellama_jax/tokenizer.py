"""Llama's SentencePiece tokenizer with Code Llama's infilling sentinels.

Sentinels are ids, never text: they stand above the pieces, and text that spells one is encoded as any other text. Ids equal
those of the published files; unlike there, any text comes back exactly, U+2581 (SentencePiece's own mark for a space) included.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import io
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sentencepiece
from etils import epath
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.errors import UserError
from codellama_jax.sizes import SENTINEL_ROWS

# Rows above the pieces. Code Llama's own files list the sentinels as pieces, Llama 2's file ends before them.
SENTINELS = {"▁<PRE>": 7, "▁<SUF>": 8, "▁<MID>": 9, "▁<EOT>": 10}
SPACE_MARK = "▁".encode()  # SentencePiece writes a space as U+2581 and cannot tell the two apart
MARK_PIECES = [f"<0x{byte:02X}>" for byte in SPACE_MARK]
META_PIECES = 3 + 256  # unknown, BOS, EOS and the bytes
LONGEST_SPACES = 16  # the longest piece, in characters
MAX_TRAINING_CHARS = 16_000_000  # keeps training within seconds and memory bounded; a toy vocabulary needs no more
TRAINING_OPTIONS = {  # Llama 2's, as its tokenizer.model records them; the rest of them are SentencePiece's defaults
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "character_coverage": 0.99995,
    "max_sentencepiece_length": LONGEST_SPACES,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "shuffle_input_sentence": False,
    "hard_vocab_limit": False,
    "num_threads": 2,
}


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
    _processor: sentencepiece.SentencePieceProcessor = field(repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        """Rows that the embedding of a model with infilling has: 32,016 for Llama 2's 32,000 pieces."""
        return self.pieces + SENTINEL_ROWS

    def encode(self, text: str, *, leading_space: bool = True) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS.

        `leading_space=False` leaves out the space that SentencePiece puts before any text: the encoding of an infilling
        example's middle and suffix (Code Llama, section 2.3). Raises UserError for a lone surrogate.
        """
        try:
            parts = (" " + text if leading_space and text else text).encode().split(SPACE_MARK)
        except UnicodeEncodeError as error:
            raise UserError(f"text holds a lone surrogate, {error.object[error.start]!a}, which is no character: remove it") from error
        ids = self._processor.encode(parts[0])
        for part in parts[1:]:
            ids += self._processor.piece_to_id(MARK_PIECES) + self._processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray, *, leading_space: bool = True) -> str:
        """Undoes `encode` with the same flag. Drops ids that are not text: BOS, EOS, sentinels, padding (-1).

        ids: [length]. Bytes that are not UTF-8, as in the middle of a character, become U+FFFD each.
        """
        ids = np.asarray(ids, np.int64)
        text = self._processor.decode(ids[(ids >= 0) & (ids < self.pieces)].tolist())
        return text.removeprefix(" ") if leading_space else text

    def save(self, path: epath.PathLike) -> None:
        """Writes the tokenizer.model that `load` reads; an interrupted write leaves what was there."""
        _write(epath.Path(path), self.model)

    def __reduce__(self) -> tuple:
        return _tokenizer, (self.model, "the pickled tokenizer")


def load(path: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer.model as Llama 2 and Code Llama publish it. Raises UserError for any other file."""
    try:
        model = epath.Path(path).read_bytes()
    except (OSError, ImportError) as error:  # epath needs another package for gs://
        raise UserError(f"cannot read the tokenizer {path}: {getattr(error, 'strerror', None) or error}") from error
    return _tokenizer(model, str(path))


def train(texts: Iterable[str], pieces: int, cache_dir: epath.PathLike) -> Tokenizer:
    """Trains a tokenizer as Llama 2's was, or finds it in `cache_dir` under a hash of all that decides it.

    The order of `texts` does not matter. Of more than MAX_TRAINING_CHARS a sample is used, which depends on the texts alone.
    Raises UserError if `texts` do not hold that many pieces, naming how many they do.
    """
    sample = _sample(texts, MAX_TRAINING_CHARS)
    recipe = {"pieces": pieces, "sentencepiece": sentencepiece.__version__, "texts": [digest for digest, _ in sample], **TRAINING_OPTIONS}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    path = epath.Path(cache_dir) / f"tokenizer-{key[:20]}.model"
    if path.exists():
        with contextlib.suppress(UserError):  # a damaged file is trained again
            return load(path)
    model = _train([text for _, text in sample], pieces)
    _write(path, model)
    return _tokenizer(model, str(path))


def _tokenizer(model: bytes, name: str) -> Tokenizer:
    """Builds a tokenizer whose processor knows the text pieces only and puts no space before text: `encode` does that."""
    proto = _parse(model, name)
    pieces, sentinels = _cut_sentinels(proto, name)
    proto.normalizer_spec.add_dummy_prefix = False
    text_model = proto.SerializeToString(deterministic=True)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=text_model)
    except RuntimeError as error:
        raise UserError(f"{name} is damaged: download tokenizer.model again") from error
    fingerprint = hashlib.sha256(text_model + repr(sentinels).encode()).hexdigest()
    return Tokenizer(model, pieces, processor.bos_id(), processor.eos_id(), *sentinels, fingerprint, processor)


def _parse(model: bytes, name: str) -> Any:
    """Parses a tokenizer.model; refuses what is not one, and those from which text would not come back exactly."""
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
        whole = proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")  # both follow the pieces in the file
    except DecodeError:
        whole = False
    if not whole:
        raise UserError(f"{name} is not a whole SentencePiece model ({len(model):,} bytes): download tokenizer.model again")
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    identity = normalizer.add_dummy_prefix and not normalizer.remove_extra_whitespaces and not normalizer.precompiled_charsmap
    if not (identity and trainer.byte_fallback and min(trainer.bos_id, trainer.eos_id) >= 0) or trainer.treat_whitespace_as_suffix:
        raise UserError(f"{name} is not a Llama tokenizer (byte fallback, leading space, no normalisation, BOS and EOS): use Llama 2's")
    return proto


def _cut_sentinels(proto: Any, name: str) -> tuple[int, tuple[int, ...]]:
    """Drops the rows that Code Llama appended, so that no text becomes a sentinel. Returns text pieces and sentinel ids."""
    found = {piece.piece: row for row, piece in enumerate(proto.pieces) if piece.piece in SENTINELS}
    if not found:
        pieces = len(proto.pieces)
        return pieces, tuple(pieces + offset for offset in SENTINELS.values())
    pieces = len(proto.pieces) - SENTINEL_ROWS
    if len(found) < len(SENTINELS) or min(found.values()) < pieces:
        raise UserError(f"{name} holds infilling sentinels outside its last {SENTINEL_ROWS} pieces: use Code Llama's tokenizer.model")
    del proto.pieces[pieces:]
    return pieces, tuple(found[piece] for piece in SENTINELS)


def _sample(texts: Iterable[str], max_chars: int) -> list[tuple[str, str]]:
    """Keeps at least `max_chars` characters of `texts`, those of the smallest hashes, as sorted (hash, text)."""
    heap: list[tuple[int, str]] = []  # the largest hash first
    size = 0
    for text in texts:
        heapq.heappush(heap, (-int(hashlib.sha256(text.encode()).hexdigest(), 16), text))
        size += len(text)
        while size - len(heap[0][1]) >= max_chars:
            size -= len(heapq.heappop(heap)[1])
    return [(f"{-digest:064x}", text) for digest, text in sorted(heap, reverse=True)]


def _train(texts: list[str], pieces: int) -> bytes:
    """Trains on lines, as Llama 2's was, so that no piece holds a newline. Returns the tokenizer.model."""
    writer = io.BytesIO()
    spaces = LONGEST_SPACES - 1  # Llama 2's pieces of 2 to 16 spaces: added below, with its score, which merges them last
    lines = (line for text in texts for line in text.split("\n"))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=writer, vocab_size=max(pieces - spaces, META_PIECES), minloglevel=3, **TRAINING_OPTIONS
        )
    except RuntimeError as error:
        least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        fix = f"the corpus needs {int(least[1]) + spaces} at least" if least else "the corpus holds no text with short enough lines"
        raise UserError(f"cannot train a tokenizer of {pieces} pieces: {fix}") from error
    proto = _parse(writer.getvalue(), "the trained tokenizer")
    for length in range(2, LONGEST_SPACES + 1):
        proto.pieces.add(piece="▁" * length)
    for piece in proto.pieces:
        if not piece.piece.strip("▁"):
            piece.score = -1e9
    if len(proto.pieces) < pieces:
        raise UserError(f"the corpus is too small for {pieces} pieces: it holds {len(proto.pieces)} at most; ask for fewer or add text")
    proto.trainer_spec.vocab_size = pieces
    proto.trainer_spec.allow_whitespace_only_pieces = True
    return proto.SerializeToString(deterministic=True)


def _write(path: epath.Path, data: bytes) -> None:
    """Writes a whole file or none; several processes may write the same one. Raises UserError where that fails."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except (OSError, ImportError) as error:
        with contextlib.suppress(OSError, ImportError):
            part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
