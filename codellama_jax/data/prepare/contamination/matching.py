"""Finds given texts and n-grams in documents: NumPy on the bytes of a document, no loop per word.

Words and tokens are hashed to 64 bits, and n-grams to a hash of their hashes. A false match of two
different n-grams has a probability of about 1e-19 per pair.

Upper and lower case are equal for ASCII letters only, because lower-casing other letters may change
the length of a text, and so the positions in it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 2**18  # bytes of a document that are processed at once: their arrays fit into a cache
ANCHOR = 16  # bytes of a needle that are looked up by their hash
LONGEST = 64  # bytes of a word that are hashed, and its length
WORD_END = re.compile(rb"[^0-9A-Za-z_\x80-\xff]")
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
FIRST, SECOND, THIRD = map(np.uint64, MULTIPLIERS)
HALF = np.uint64(32)
SPACE, WORD, PUNCTUATION = range(3)
# Bits of eight bytes that are not part of a word of 0, 1, ... 8 bytes.
UNUSED_BITS = np.arange(64, -1, -8, dtype=np.uint64)


def _classes() -> bytes:
    """Returns the class of each byte; all bytes of letters outside ASCII belong to words."""
    classes = bytearray([PUNCTUATION] * 256)
    for byte in range(256):
        if byte <= ord(" ") or byte == 127:
            classes[byte] = SPACE
        elif not WORD_END.match(bytes([byte])):
            classes[byte] = WORD
    return bytes(classes)


CLASSES = _classes()


class Units(NamedTuple):
    """Words or tokens of a text: byte positions [units] int64 and hashes [units] uint64."""

    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray


def units_of(data: bytes, punctuation: bool) -> Units:
    """Returns the words of a text in UTF-8: runs of letters, digits and underscores.

    With `punctuation` each byte of ASCII punctuation is a unit too. Words of more than LONGEST
    bytes are compared by their beginning and length, so that base64 takes no longer than prose.
    """
    # The hash of a word reads eight bytes at a time, also past the end of the last word.
    padded = data + bytes(LONGEST)
    chunks = [_units_between(padded, *limits, punctuation) for limits in _chunks(data)]
    return Units(*(np.concatenate(arrays) for arrays in zip(*chunks)))


def _chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields the (begin, end) of consecutive chunks of about CHUNK bytes that split no word."""
    begin, length = 0, len(data)
    # `not begin` yields one empty chunk for an empty text, so that there are arrays to join.
    while begin < length or not begin:
        end = WORD_END.search(data, begin + CHUNK)
        limit = end.start() if end else length
        yield begin, limit
        if limit == length:
            return
        begin = limit


def _units_between(padded: bytes, begin: int, end: int, punctuation: bool) -> Units:
    # The fastest look-up of bytes in a table.
    classes = np.frombuffer(padded[begin:end].translate(CLASSES), np.uint8)
    is_word = classes == WORD
    is_first, is_last = is_word.copy(), is_word.copy()
    # A word starts where the byte before is of no word, and ends where the byte after is of none.
    # At the borders of a chunk this holds too, because no chunk splits a word.
    is_first[1:] &= ~is_word[:-1]
    is_last[:-1] &= ~is_word[1:]
    if punctuation:
        is_mark = classes == PUNCTUATION
        is_first |= is_mark
        is_last |= is_mark
    starts = np.flatnonzero(is_first) + begin
    ends = np.flatnonzero(is_last) + (begin + 1)
    return Units(starts, ends, _word_hashes(padded, starts, ends - starts))


def _eight_bytes(data: bytes) -> np.ndarray:
    """Returns a view of the eight bytes at every position but the last seven, as integers."""
    return np.ndarray((max(len(data) - 7, 0),), "<u8", data, strides=(1,))


def _word_hashes(padded: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the hashes [units] of the words at byte positions `starts` of `lengths` bytes."""
    eight = _eight_bytes(padded)
    # The length is part of the hash: words over LONGEST bytes with one beginning still differ.
    hashes = lengths.astype(np.uint64) * THIRD
    # The words that are longer than the bytes hashed so far; all at first.
    longer: slice | np.ndarray = slice(None)
    places, left = starts, lengths
    # Vectorised over all words, eight bytes per step. Most words are short, so that the arrays
    # shrink quickly, and the loop mostly ends after one or two steps.
    for _ in range(0, LONGEST, 8):
        # Little-endian: the shift drops the bytes after the word.
        letters = eight[places] << UNUSED_BITS[np.minimum(left, 8)]
        mixed = (hashes[longer] ^ letters) * FIRST
        mixed ^= mixed >> HALF
        hashes[longer] = mixed
        is_longer = left > 8
        if not is_longer.any():
            break
        longer = np.arange(len(starts))[longer][is_longer]
        places, left = places[is_longer] + 8, left[is_longer] - 8
    return hashes


def gram_hashes(hashes: np.ndarray, size: int) -> np.ndarray:
    """Returns the hashes of all runs of `size` units, [max(0, units - size + 1)] uint64."""
    count = max(len(hashes) - size + 1, 0)
    grams = np.zeros(count, np.uint64)
    # Horner's rule: a polynomial in SECOND over the hashes of `size` consecutive units, so that the
    # order of the units counts. All runs are computed at once.
    for position in range(size):
        grams *= SECOND
        grams += hashes[position : position + count]
    # HashTable looks at the upper bits, into which the lower bits are mixed here.
    grams ^= grams >> HALF
    grams *= FIRST
    return grams


class HashTable:
    """A set of hashes that recognises most others by one look into a small table."""

    def __init__(self, keys: np.ndarray):
        """Takes sorted, different hashes, [keys] uint64."""
        self.keys = keys
        # With 32 cells per key, 3 % of other hashes are compared with the keys.
        bits = min(max(int(len(keys) * 32).bit_length(), 16), 26)
        self._shift = np.uint64(64 - bits)
        self._is_used = np.zeros(1 << bits, bool)
        self._is_used[keys >> self._shift] = True

    def matches(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions of hashes that are keys, and the indices of those keys."""
        candidates = np.flatnonzero(self._is_used[hashes >> self._shift])
        if not len(candidates):
            return candidates, candidates
        # searchsorted returns the number of keys for a hash above all of them. Any valid index will
        # do in its place, since the comparison that follows fails.
        indices = np.searchsorted(self.keys, hashes[candidates])
        indices[indices == len(self.keys)] = 0
        is_equal = self.keys[indices] == hashes[candidates]
        return candidates[is_equal], indices[is_equal]


class Needles:
    """Texts to find in documents, regardless of the case of ASCII letters."""

    def __init__(self, needles: Sequence[bytes]):
        """Takes texts in UTF-8, in lower case, of at least ANCHOR bytes."""
        self._needles = needles
        # By the hash of an anchor: the needle and the position of its anchor.
        self._anchors: dict[int, list[tuple[int, int]]] = {}
        for number, needle in enumerate(needles):
            position, anchor = _anchor(needle)
            self._anchors.setdefault(anchor, []).append((number, position))
        self._table = HashTable(np.array(sorted(self._anchors), np.uint64))

    def find(self, lowered: bytes) -> Iterator[tuple[int, int, int]]:
        """Yields (needle, start, end) in bytes of the first match of each needle."""
        matched = set()
        for begin in range(0, len(lowered), CHUNK):
            # Chunks overlap by one byte less than an anchor: every anchor is in exactly one chunk.
            chunk = lowered[begin : begin + CHUNK + ANCHOR - 1]
            positions, keys = self._table.matches(_anchor_hashes(chunk))
            for position, key in zip(positions.tolist(), self._table.keys[keys].tolist()):
                for number, offset in self._anchors[key]:
                    # The match itself is compared in the full text and may leave the chunk on both
                    # sides.
                    start = begin + position - offset
                    needle = self._needles[number]
                    # A negative position would count from the end.
                    is_match = start >= 0 and lowered.startswith(needle, start)
                    if is_match and number not in matched:
                        matched.add(number)
                        yield number, start, start + len(needle)


def _anchor_hashes(data: bytes) -> np.ndarray:
    """Returns the hashes of all ANCHOR bytes in `data`, [max(0, bytes - ANCHOR + 1)] uint64."""
    eight = _eight_bytes(data)
    later = eight[8:]
    hashes = eight[: len(later)] * FIRST
    hashes ^= hashes >> HALF
    hashes += later
    hashes *= SECOND
    return hashes


def _anchor(needle: bytes) -> tuple[int, int]:
    """Returns the position and hash of the ANCHOR bytes of a needle that are looked up.

    They are those with the most different characters: rare in documents, as indentation is not.
    """
    windows = range(len(needle) - ANCHOR + 1)
    position = max(windows, key=functools.partial(_variety, needle))
    return position, int(_anchor_hashes(needle[position : position + ANCHOR])[0])


def _variety(needle: bytes, position: int) -> int:
    return len(set(needle[position : position + ANCHOR]))
