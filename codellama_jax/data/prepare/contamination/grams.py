"""The n-grams and the words of several texts, and which texts share them with a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from codellama_jax.data.prepare.contamination.matching import (
    HashTable,
    Units,
    gram_hashes,
    units_of,
)


class Postings:
    """The places of each different hash in several arrays.

    Attributes:
        table: the hashes, each a key.
        owners: [places] int, the array of each place; the places of a key are consecutive.
        positions: [places] int, the position of each place in its array.
        begins: [keys] int, the first place of each key.
        ends: [keys] int, one after the last one.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        """Takes hashes, each array [any] uint64."""
        # An inverted index in flat arrays, as a CSR matrix: the places of key k are the range
        # begins[k] to ends[k] of `owners` and `positions`. Dicts of lists would take many times the
        # memory.
        lengths = [len(array) for array in arrays]
        # The empty array is for no texts at all: np.concatenate of nothing is an error.
        joined = np.concatenate([np.zeros(0, np.uint64), *arrays])
        # Stable: the places of a key stay in the order of the arrays.
        order = np.argsort(joined, kind="stable")
        keys, self.begins = np.unique(joined[order], return_index=True)
        self.ends = np.append(self.begins[1:], len(order))
        self.owners = np.repeat(np.arange(len(arrays)), lengths)[order]
        # Start of each place's array in `joined`, which turns global into local positions.
        firsts = np.repeat(np.cumsum([0, *lengths])[:-1], lengths)
        self.positions = (np.arange(len(joined)) - firsts)[order]
        self.table = HashTable(keys)


class Grams:
    """The n-grams of several texts, and the texts and positions that hold each."""

    def __init__(self, texts: Sequence[str], size: int, punctuation: bool, lower: bool):
        self._size, self._punctuation, self._lower = size, punctuation, lower
        units = [self.units(text.encode()).hashes for text in texts]
        self.lengths = [len(hashes) for hashes in units]  # units of each text
        self._postings = Postings([gram_hashes(hashes, size) for hashes in units])
        self.keys = self._postings.table.keys  # hashes of the n-grams, sorted

    def units(self, data: bytes) -> Units:
        """Returns the units of a text in UTF-8."""
        # bytes.lower changes ASCII letters only, so that positions in bytes stay valid.
        return units_of(data.lower() if self._lower else data, self._punctuation)

    def matches(self, units: Units) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions of n-grams that are of a text, and the indices of their keys."""
        return self._postings.table.matches(gram_hashes(units.hashes, self._size))

    def owner(self, key: int) -> int:
        """Returns the first text that holds an n-gram."""
        return int(self._postings.owners[self._postings.begins[key]])

    def places(self, key: int) -> Iterator[tuple[int, int]]:
        """Yields (text, position of its unit) of an n-gram, for every place that has it."""
        postings = self._postings
        span = slice(postings.begins[key], postings.ends[key])
        yield from zip(postings.owners[span].tolist(), postings.positions[span].tolist())


class WordSets:
    """The different words of several texts, to be compared with those of a document."""

    def __init__(self, texts: Sequence[str]):
        words = [_different_words(text.encode()) for text in texts]
        self._sizes = np.array([len(hashes) for hashes in words], int)
        self._postings = Postings(words)

    def similar(self, data: bytes, least: float) -> list[int]:
        """Returns the texts whose Jaccard index with a document in UTF-8 is at least `least`."""
        words = _different_words(data)
        # The index is at most the ratio of the sizes: most documents are far larger.
        if not len(words) or len(words) * least > self._sizes.max(initial=0):
            return []
        _, keys = self._postings.table.matches(words)
        begins = self._postings.begins[keys]
        lengths = self._postings.ends[keys] - begins
        # All places of all these words: a range per word.
        starts = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
        owners = self._postings.owners[np.arange(len(starts)) + starts]
        # Both sides hold distinct words, so a count of places per text is a count of shared words.
        shared = np.bincount(owners, minlength=len(self._sizes))
        union = self._sizes + len(words) - shared
        return np.flatnonzero(shared >= least * union).tolist()


def _different_words(data: bytes) -> np.ndarray:
    """Returns the sorted hashes of the different words of a text in UTF-8."""
    words = np.sort(units_of(data, False).hashes)
    # Three times as fast as np.unique.
    is_first = np.ones(len(words), bool)
    is_first[1:] = words[1:] != words[:-1]
    return words[is_first]
