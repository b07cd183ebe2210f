"""Requests to the engine, their sequences, and which prompts are read together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from codellama_jax.generation.batches import bucket
from codellama_jax.generation.settings import Sampling

READ_TOKENS = 32_768  # of the prompts that are read at once, which bounds the memory
SMALL_READ = 4096  # tokens, padding included, that are read at once whatever their lengths
READ_SIZES = (1, 4, 16, 64)  # prompts read, or slots copied or decoded apart, at once


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt to continue.

    Attributes:
      prompt: ids, BOS included where wanted.
      sampling: how tokens are drawn, and at most how many; without beam search.
      stop_ids: at most 4 ids; each ends the sequence and is not returned.
      stop: called with all new ids, returns whether they suffice. The sequence ends with the first
        id for which it is true. It must be monotone: more ids never turn true into false.
      on_tokens: called with all new ids whenever there are more; chunks are then short.
      number: below 2**32. The PRNG key is folded from the seed and this number.
      first: the ids that may come first; None for any.
    """

    prompt: Sequence[int]
    sampling: Sampling
    stop_ids: Sequence[int] = ()
    stop: Callable[[list[int]], bool] | None = None
    on_tokens: Callable[[list[int]], None] | None = None
    number: int = 0
    first: np.ndarray | None = None


class Update(NamedTuple):
    """The new ids of one request since its last update, and whether it has ended.

    Attributes:
      request: its id.
      ids: the new ids. The first update of a request has none: its prompt is being read.
      is_finished: whether it has ended.
      reused: tokens of its prompt that were in the cache before.
    """

    request: int
    ids: list[int]
    is_finished: bool
    reused: int = 0


class Running:
    """A request and its new ids.

    Attributes:
      id: of the request.
      request: the request.
      prompt: its ids.
      ids: the same as an array.
      key: the prompt as bytes, whose hash is computed once.
      end: the most positions that the sequence takes in the cache.
      read: tokens of the prompt that are in the cache.
      stop: where the piece of the prompt that is read next ends.
      pieces: how many pieces have been read.
      new: the new ids.
      is_finished: whether it has ended.
      is_started: whether ids have been drawn.
    """

    def __init__(self, number: int, request: Request) -> None:
        """Starts without new ids. `number` is the id."""
        self.id, self.request, self.prompt = number, request, list(request.prompt)
        self.ids = np.asarray(self.prompt, np.int32)
        self.key = self.ids.tobytes()
        self.end = len(self.prompt) + request.sampling.max_new_tokens
        self.read, self.stop, self.pieces = 0, len(self.prompt), 0
        self.is_finished, self.is_started = False, False
        self.new: list[int] = []

    def text(self) -> np.ndarray:
        """Returns the ids of the prompt and the new ones."""
        return np.concatenate([self.ids, np.asarray(self.new, np.int32)])

    def begin(self, read: int, piece: int) -> None:
        """Starts to read the prompt, of which the cache holds `read` tokens, in pieces.

        `piece`: tokens of a piece; 0 for one piece.
        """
        self.read, self.pieces = read, 0
        self._set_stop(piece)

    def next_piece(self, piece: int) -> None:
        """Moves on to the next piece, of at most `piece` tokens."""
        self.read, self.pieces = self.stop, self.pieces + 1
        self._set_stop(piece)

    def _set_stop(self, piece: int) -> None:
        self.stop = len(self.prompt)
        if piece:
            self.stop = min(self.stop, self.read + piece)

    def take(self, drawn: list[int]) -> list[int]:
        """Adds drawn ids up to the end of the sequence, and returns those added."""
        request = self.request
        # A chunk may have drawn past the end of the sequence: keep no more than the request allows.
        most = request.sampling.max_new_tokens - len(self.new)
        ids, self.is_started = drawn[:most], True
        self.is_finished = len(ids) == most
        for index, token in enumerate(ids):
            # The device found the stop id as well, and stopped counting this slot as unfinished;
            # the ids that it drew afterwards are dropped here.
            if token in request.stop_ids:
                ids, self.is_finished = ids[:index], True
                break
        # `stop` is monotone, so one call per chunk decides whether to search for the exact end.
        if request.stop and ids and request.stop([*self.new, *ids]):
            ids, self.is_finished = ids[: self._first_end(ids)], True
        self.new += ids
        if request.on_tokens and ids:
            request.on_tokens(list(self.new))
        return ids

    def _first_end(self, ids: list[int]) -> int:
        """Returns how many of these ids make `stop` true."""
        assert self.request.stop is not None
        # Linear in the chunk, and each call decodes text, but it runs once per sequence. Sequences
        # end after the same id whatever the size of the chunks.
        for count in range(1, len(ids)):
            if self.request.stop(self.new + ids[:count]):
                return count
        return len(ids)


def groups(
    to_read: Sequence[tuple[Running, int]], shards: int, most: int = READ_TOKENS
) -> Iterator[list[tuple[Running, int]]]:
    """Yields sequences, with their slots, that read a piece of their prompts together.

    The longest pieces come first. Padding at most doubles the tokens of a group, unless they are
    few.

    Args:
      to_read: sequences and their slots.
      shards: of the mesh's data axis.
      most: tokens of a group, padding included, unless one sequence has more.
    """
    # Sorted by length, so that prompts of similar length share a batch and need little padding.
    remaining = sorted(to_read, key=_negative_length)
    while remaining:
        length = bucket(-_negative_length(remaining[0]))
        alike = 0
        for item in remaining:
            # So few tokens are read in one call, whatever padding that takes, instead of several.
            is_small = (alike + 1) * length <= SMALL_READ
            if not is_small and bucket(-_negative_length(item)) * 2 < length:
                break
            alike += 1
        # The sizes are few, because each pair of a size and a length is a program to compile.
        size = _read_size(alike, most // length, shards)
        yield remaining[:size]
        remaining = remaining[size:]


def _negative_length(item: tuple[Running, int]) -> int:
    sequence, _ = item
    return sequence.read - sequence.stop


def _read_size(count: int, most: int, shards: int) -> int:
    """Returns how many of `count` prompts to read at once: at most `most`, half the batch filled.

    Args:
      count: prompts.
      most: prompts that memory bounds.
      shards: what the mesh's data axis multiplies every size with.
    """
    for size in reversed(READ_SIZES):
        # At least half of the batch is filled; otherwise the next smaller size wastes less.
        if size * shards <= most and count * 2 > size * shards:
            return min(count, size * shards)
    return min(count, shards)


def size_of(count: int, shards: int = 1) -> int:
    """Returns the least of READ_SIZES, or a multiple of their last, that is at least `count`."""
    for size in READ_SIZES:
        if count <= size * shards:
            return size * shards
    return count + -count % (READ_SIZES[-1] * shards)
