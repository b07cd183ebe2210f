"""Grain's shuffled order of a small source, at a small fraction of Grain's time.

Grain shuffles a source of n documents by a cipher of at least 16 bits, which it applies again until
the result is below n: 65,536 / n times on average, which takes 15 ms per document for n = 3. Here
the cipher of an epoch is computed once, as a table of its 65,536 values: an epoch takes 1 ms.
The order is exactly Grain's: runs of any size keep their documents.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import grain
import numpy as np

MOST = 4096  # documents; above, Grain's own shuffle applies its cipher fewer than 20 times each
BLOCK = 1 << 16  # values of the cipher: two bytes, called left and right
JUMPS = 4  # squarings of the table before it is followed one value at a time
WORD = 0xFFFFFFFF


class Shuffled(grain.MapDataset):
    """The documents of `parent` in another order in each epoch, like `parent.shuffle(seed)`."""

    def __init__(self, parent: grain.MapDataset, seed: int):
        super().__init__(parent)
        self._seed = seed

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        count = len(self._parent)
        epoch, position = divmod(index, count)
        # Grain, too, shuffles epoch e with seed + e.
        order = epoch_order(count, (self._seed + epoch) & WORD)
        return self._parent[epoch * count + int(order[position])]


def shuffled(documents: grain.MapDataset, seed: int) -> grain.MapDataset:
    """Returns the order of `documents.shuffle(seed)`, from the faster of two implementations."""
    if len(documents) > MOST:
        return documents.shuffle(seed)
    return Shuffled(documents, seed)


# Lanes read different epochs at the same time. An order takes 2 bytes per document.
@lru_cache(maxsize=8192)
def epoch_order(count: int, seed: int) -> np.ndarray:
    """Returns Grain's order of `count` documents, uint16 [count], for the seed of one epoch.

    The document at position i is the first value below `count` that the repeated cipher reaches
    from i (cycle walking).
    """
    if count == 1:
        return np.zeros(1, np.uint16)
    table = _cipher_table(seed)
    following = table.copy()
    # A value below `count` is final, so it leads to itself. Squaring the table then never moves
    # past a final value, and each squaring doubles the applications that one lookup stands for.
    following[:count] = np.arange(count)
    for _ in range(JUMPS):
        following = following[following]
    # Indexing a memoryview returns Python integers faster than indexing an array.
    lookup, order = following.data, []
    # The first application is from `table`: i itself is below `count`, but not yet a result.
    for value in table[:count].tolist():
        while value >= count:
            value = lookup[value]
        order.append(value)
    return np.array(order, np.uint16)


def _cipher_table(seed: int) -> np.ndarray:
    """Returns the cipher of every 16-bit value, intp [65536].

    It is the block cipher Simon with 4 rounds, keyed by the low bytes of `_round_keys`.
    """
    keys = np.array(_round_keys(seed), np.uint32).astype(np.uint8)
    value = np.arange(BLOCK, dtype=np.uint16)
    left, right = (value >> 8).astype(np.uint8), value.astype(np.uint8)
    for key in range(0, len(keys), 2):
        left = left ^ _simon(right) ^ keys[key]
        right = right ^ _simon(left) ^ keys[key + 1]
    return left.astype(np.intp) << 8 | right


def _simon(x: np.ndarray) -> np.ndarray:
    """Returns Simon's round function of bytes, uint8 of any shape."""
    # Simon combines rotations by 1, 8 and 2 bits. A byte rotated by 8 bits is the byte itself.
    by_one = _rotated(x)
    return (by_one & x) ^ _rotated(by_one)


def _rotated(x: np.ndarray) -> np.ndarray:
    """Rotates bytes left by one bit, in operations that NumPy vectorizes."""
    # x + x drops the highest bit, which the second term returns as the lowest.
    return (x + x) | (x >= 128).view(np.uint8)


def _round_keys(seed: int) -> list[int]:
    """Returns the four 32-bit numbers of std::seed_seq{seed}.generate of the C++ standard.

    The names and constants are those of the standard's [rand.util.seedseq], for 4 outputs, where
    both of its offsets are 1 and 2.
    """
    keys = [0x8B8B8B8B] * 4
    for k in range(4):
        mixed = keys[k] ^ keys[(k + 1) % 4] ^ keys[k - 1]
        first = 1664525 * (mixed ^ mixed >> 27) & WORD
        second = first + (1, 1 + seed, 2, 3)[k] & WORD
        keys[(k + 1) % 4] = keys[(k + 1) % 4] + first & WORD
        keys[(k + 2) % 4] = keys[(k + 2) % 4] + second & WORD
        keys[k] = second
    for k in range(4):
        mixed = keys[k] + keys[(k + 1) % 4] + keys[k - 1] & WORD
        first = 1566083941 * (mixed ^ mixed >> 27) & WORD
        second = first - k & WORD
        keys[(k + 1) % 4] ^= first
        keys[(k + 2) % 4] ^= second
        keys[k] = second
    return keys
