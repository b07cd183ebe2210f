"""Trains a tokenizer.model as Llama 2's was, on any corpus and with any number of pieces from 300."""

from __future__ import annotations

import hashlib
import heapq
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.errors import UserError
from codellama_jax.system.progress import Say, silent

LEAST_PIECES = 300  # with which any corpus trains
MOST_PIECES = 1_000_000
META_PIECES = 3 + 256  # unknown, BOS, EOS and the bytes
LONGEST_SPACES = 16  # the longest piece, in characters
LONGEST_LINE = 1000  # characters, under SentencePiece's limit of 4,192 bytes
MAX_TRAINING_CHARS = 16_000_000  # bounds time and memory; a toy vocabulary needs no more
RESERVED = "▅"  # SentencePiece drops lines that hold its own mark for an unknown character
CONTROL = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL
TRAINING_OPTIONS = {  # those recorded in Llama 2's tokenizer.model that are not the defaults
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


def sample(texts: Iterable[str], max_chars: int) -> list[tuple[str, str]]:
    """Keeps at least `max_chars` characters of `texts`, those of the smallest hashes.

    Returns them as sorted (hash, text), whatever the order of `texts`.
    """
    heap: list[tuple[int, str]] = []  # the largest hash first
    size = 0
    for text in texts:
        heapq.heappush(heap, (-int(hashlib.sha256(text.encode()).hexdigest(), 16), text))
        size += len(text)
        while size - len(heap[0][1]) >= max_chars:
            size -= len(heapq.heappop(heap)[1])
    return [(f"{-digest:064x}", text) for digest, text in sorted(heap, reverse=True)]


def train_model(texts: list[str], pieces: int, say: Say = silent) -> bytes:
    """Trains on lines, as Llama 2's was, so that no piece holds a newline.

    Returns a tokenizer.model of exactly `pieces` pieces. Where the corpus has more distinct
    characters than there is room for, the rare ones are left to the bytes; where it is too small,
    the last pieces stay unused. Raises UserError for a corpus without text or too few pieces.
    """
    if pieces > MOST_PIECES:
        limit = f"a tokenizer has {MOST_PIECES:,} or fewer"
        raise UserError(f"tokenizer.pieces is {pieces}: {limit}; pass a smaller --tokenizer.pieces")
    # Llama 2's pieces of 2 to 16 spaces are added below, with its score, which merges them last.
    size = max(pieces - (LONGEST_SPACES - 1), META_PIECES)
    try:
        model = _bpe(_lines(texts), size)
    except RuntimeError as error:
        if pieces < LEAST_PIECES:
            raise UserError(
                f"tokenizer.pieces is {pieces}: this corpus takes {LEAST_PIECES} or more (256 "
                f"bytes, 3 markers, 15 runs of spaces, some characters): "
                f"pass --tokenizer.pieces {LEAST_PIECES}"
            ) from error
        model = _bpe_of_common_characters(texts, size)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for length in range(2, LONGEST_SPACES + 1):
        proto.pieces.add(piece="▁" * length)
    for piece in proto.pieces:
        if not piece.piece.strip("▁"):
            piece.score = -1e9
    trained = len(proto.pieces)
    if trained < pieces:
        say(
            f"the corpus has text for {trained:,} pieces: the other {pieces - trained:,} of --tokenizer.pieces {pieces} stay unused"
        )
    for number in range(pieces - trained):
        proto.pieces.add(piece=f"<unused_piece_{number}>", type=CONTROL)
    proto.trainer_spec.vocab_size = pieces
    proto.trainer_spec.allow_whitespace_only_pieces = True
    return proto.SerializeToString(deterministic=True)


def _bpe(lines: Iterator[str], size: int) -> bytes:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=writer,
        vocab_size=size,
        minloglevel=3,
        **TRAINING_OPTIONS,
    )
    return writer.getvalue()


def _bpe_of_common_characters(texts: list[str], size: int) -> bytes:
    """Trains on the commonest characters, which take at most half of the room above the bytes.

    SentencePiece's character_coverage does the same, but goes no lower than 0.98.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    for character in (" ", "▁", "\n", RESERVED):
        counts.pop(character, None)
    room = (size - META_PIECES) // 2 - 1  # one of them is the space
    common = "".join(character for character, _ in counts.most_common(room))
    rare = re.compile(f"[^{re.escape(common)} ▁]+")
    try:
        return _bpe(_parts(texts, rare), size)
    except RuntimeError as error:
        raise UserError("cannot train a tokenizer: the corpus holds no text") from error


def _lines(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from text.split("\n")


def _parts(texts: list[str], rare: re.Pattern) -> Iterator[str]:
    """Yields the lines, split at rare characters and where they are too long for SentencePiece."""
    for line in _lines(texts):
        for part in rare.split(line):
            for begin in range(0, len(part), LONGEST_LINE):
                yield part[begin : begin + LONGEST_LINE]
