"""Trains a tokenizer.model with Llama 2's options, on any corpus and for 300 pieces or more."""

from __future__ import annotations

import hashlib
import heapq
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece

from codellama_jax.errors import UserError
from codellama_jax.system.progress import Say, silent
from codellama_jax.tokenizers.sentencepiece_file import ModelProto

LEAST_PIECES = 300  # any corpus has enough text for so many
MOST_PIECES = 1_000_000
META_PIECES = 3 + 256  # UNK, BOS, EOS and the bytes
LONGEST_SPACES = 16  # length of the longest piece, which is of spaces, in characters
LONGEST_LINE = 1000  # characters; even of 4 bytes each they are under SentencePiece's 4,192 bytes
MAX_TRAINING_CHARS = 16_000_000  # bounds time and memory; a toy vocabulary needs no more
RESERVED = "▅"  # SentencePiece drops a line with this character, its mark for an unknown one
CONTROL = ModelProto.SentencePiece.CONTROL
# The options recorded in Llama 2's tokenizer.model that are not SentencePiece's defaults.
TRAINING_OPTIONS: dict[str, Any] = {
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
    """Returns a sample of `texts` with at least `max_chars` characters, as sorted (hash, text).

    The texts with the smallest hashes are taken, so that the order of `texts` does not matter.
    """
    # Negative hashes: heapq keeps the smallest entry first, and the largest hash is removed first.
    heap: list[tuple[int, str]] = []
    size = 0
    for text in texts:
        heapq.heappush(heap, (-int(hashlib.sha256(text.encode()).hexdigest(), 16), text))
        size += len(text)
        while size - len(heap[0][1]) >= max_chars:
            size -= len(heapq.heappop(heap)[1])
    return [(f"{-digest:064x}", text) for digest, text in sorted(heap, reverse=True)]


def train_model(texts: list[str], pieces: int, print_line: Say = silent) -> bytes:
    """Returns the content of a tokenizer.model with exactly `pieces` pieces, trained on `texts`.

    As for Llama 2, SentencePiece reads lines, so no piece holds a newline. If the corpus has more
    distinct characters than the vocabulary has room for, rare characters become bytes. If the
    corpus is too small, the last pieces stay unused, which `print_line` reports.

    Raises UserError for a corpus without text and for too many or too few pieces.
    """
    if pieces > MOST_PIECES:
        limit = f"a tokenizer has {MOST_PIECES:,} or fewer"
        raise UserError(f"tokenizer.pieces is {pieces}: {limit}; pass a smaller --tokenizer.pieces")
    # Pieces of 2 to 16 spaces are added below, as Llama 2's vocabulary has them.
    size = max(pieces - (LONGEST_SPACES - 1), META_PIECES)
    try:
        model = _bpe(_lines(texts), size)
    except RuntimeError as error:
        # SentencePiece fails if the distinct characters alone exceed the vocabulary.
        if pieces < LEAST_PIECES:
            raise UserError(
                f"tokenizer.pieces is {pieces}: this corpus takes {LEAST_PIECES} or more (256 "
                f"bytes, 3 markers, 15 runs of spaces, some characters): "
                f"pass --tokenizer.pieces {LEAST_PIECES}"
            ) from error
        model = _bpe_of_common_characters(texts, size)
    proto = ModelProto.FromString(model)
    for length in range(2, LONGEST_SPACES + 1):
        proto.pieces.add(piece="▁" * length)
    # Llama 2's score of spaces, the lowest, so that they are merged last.
    for piece in proto.pieces:
        if not piece.piece.strip("▁"):
            piece.score = -1e9
    trained = len(proto.pieces)
    if trained < pieces:
        unused = f"the other {pieces - trained:,} of --tokenizer.pieces {pieces} stay unused"
        print_line(f"the corpus has text for {trained:,} pieces: {unused}")
    # A control piece never encodes text.
    for number in range(pieces - trained):
        proto.pieces.add(piece=f"<unused_piece_{number}>", type=CONTROL)
    proto.trainer_spec.vocab_size = pieces
    proto.trainer_spec.allow_whitespace_only_pieces = True
    return proto.SerializeToString(deterministic=True)


def _bpe(lines: Iterator[str], size: int) -> bytes:
    """Returns a tokenizer.model of at most `size` pieces. Raises RuntimeError for too few."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=writer,
        vocab_size=size,
        minloglevel=3,  # prints nothing
        **TRAINING_OPTIONS,
    )
    return writer.getvalue()


def _bpe_of_common_characters(texts: list[str], size: int) -> bytes:
    """Returns a tokenizer.model trained on the most common characters.

    They take at most half of the vocabulary above the bytes. SentencePiece's character_coverage
    would do the same, but is limited to 0.98 and above.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    # SentencePiece treats these characters itself.
    for character in (" ", "▁", "\n", RESERVED):
        counts.pop(character, None)
    room = (size - META_PIECES) // 2 - 1  # the space takes one
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
