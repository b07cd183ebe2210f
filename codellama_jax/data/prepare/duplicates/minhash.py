"""MinHash signatures and the hashes of their bands, as BigCode computed them for StarCoder.

Two documents are near-duplicates if they agree in a band: `rows` consecutive values of signatures
whose agreement estimates the Jaccard index of the documents' sets of shingles. Values are bit-equal
to BigCode's near_deduplication/minhash_deduplication.py, with one difference: documents with fewer
tokens than a shingle have no bands. BigCode gives them all one signature, so that it keeps one of
them all.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from codellama_jax.checked import Checked, FieldError, Range

SEED = 42  # of the permutations
BAND_BYTES = 8  # of a band's hash; two different bands agree with a probability of 2**-64
PRIME_BITS = 61
PRIME = np.uint64((1 << PRIME_BITS) - 1)
BLOCK = 64  # shingles that are permuted at once: 64 x 256 values of 8 bytes fit a core's cache
LARGEST_HASH = np.uint32(2**32 - 1)

_WORD = re.compile(rb"[A-Za-z_0-9]")
# Every byte that is not part of a word becomes a space.
_SEPARATED = bytes(byte if _WORD.match(bytes([byte])) else 32 for byte in range(256))


@dataclass(frozen=True)
class NearDuplicates(Checked):
    """Finds documents that are nearly equal, by MinHash with locality-sensitive hashing.

    A document is a set of shingles. Its signature has one value per permutation; two documents that
    agree in all values of a band count as near-duplicates.
    """

    # The defaults are StarCoder's, and the step is off.
    enabled: bool = False  # Drops all but one of the documents that are nearly equal.
    permutations: Annotated[int, Range(1, 2**14)] = 256  # Values in the signature of a document.
    ngram: Annotated[int, Range(1, 1000)] = 5  # Consecutive words or lines in a shingle.
    unit: Literal["words", "lines"] = "words"  # Shingles consist of words or of lines.
    # Jaccard index of two sets of shingles from which documents are near-duplicates.
    threshold: Annotated[float, Range(0, 1, open_least=True)] = 0.7
    # Bands of a signature; 0 takes the number with the fewest errors at the threshold.
    bands: Annotated[int, Range(0, 2**14)] = 25
    rows: Annotated[int, Range(0, 2**14)] = 10  # Values in a band; 0 where bands is 0.
    # Compare all documents, or only those of the same language.
    scope: Literal["global", "language"] = "global"
    verify_jaccard: bool = False  # Drops pairs whose true Jaccard index is below the threshold.

    def check_relations(self) -> None:
        """Raises FieldError for bands that need more values than a signature has."""
        if bool(self.bands) != bool(self.rows):
            zero = "bands" if self.rows else "rows"
            raise FieldError((zero,), " is 0: set both bands and rows, or neither")
        if self.bands * self.rows > self.permutations:
            used = f"{self.bands} x {self.rows} rows"
            limit = f"the signature has {self.permutations} permutations"
            raise FieldError(("bands",), f" is {self.bands}: {used} are too many, {limit}")

    def banding(self) -> tuple[int, int]:
        """Returns the number of bands and of values per band."""
        if self.bands:
            return self.bands, self.rows
        return optimal_bands(self.threshold, self.permutations)


@functools.cache
def optimal_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Returns the (bands, rows) with the least expected errors at a threshold.

    They minimise half the area of false positives plus half the area of false negatives, as
    datasketch and BigCode do.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold, permutations, weights=(0.5, 0.5))
    return index.b, index.r


def shingles(text: str, params: NearDuplicates) -> set[bytes]:
    """Returns the sequences of `ngram` consecutive tokens of a text; empty if it has fewer.

    Words are split at every character outside [A-Za-z_0-9], so that there are empty words between
    two such characters. Lines are stripped.
    """
    if params.unit == "lines":
        lines = [line.strip() for line in text.encode(errors="replace").splitlines()]
        data, lengths = b"\n".join(lines), np.array([len(line) for line in lines], np.int64)
        ends = np.cumsum(lengths + 1) - 1
    else:
        # One byte per character, so that the separators of tokens are the spaces of `data`.
        data = text.encode("ascii", errors="replace").translate(_SEPARATED)
        spaces = np.flatnonzero(np.frombuffer(data, np.uint8) == ord(" "))
        ends = np.append(spaces, len(data))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    # Shingle i is the slice from the start of token i to the end of token i + ngram - 1. Separators
    # are equal single bytes, so that equal slices are equal sequences of tokens, and no list of
    # tokens is made.
    pairs = zip(starts.tolist(), ends[params.ngram - 1 :].tolist())
    return {data[start:end] for start, end in pairs}


def shingle_hashes(items: Iterable[bytes]) -> np.ndarray:
    """Returns the sorted distinct hashes of shingles, uint32.

    A hash is the first 4 bytes of SHA-1, little-endian.
    """
    sha1 = hashlib.sha1
    digests = b"".join([sha1(item, usedforsecurity=False).digest()[:4] for item in items])
    return np.unique(np.frombuffer(digests, "<u4").astype(np.uint32))


@functools.cache
def _coefficients(permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the a and b of the permutations a * hash + b, as BigCode draws them."""
    random = np.random.RandomState(SEED)
    pairs = []
    for _ in range(permutations):
        a = random.randint(1, int(PRIME), dtype=np.uint64)
        pairs.append((a, random.randint(0, int(PRIME), dtype=np.uint64)))
    return tuple(np.array(pairs, np.uint64).T)  # type: ignore[return-value]


def signature(hashes: np.ndarray, permutations: int) -> np.ndarray:
    """Returns the least value of every permutation over hashes: uint32 [permutations].

    Memory is bounded by BLOCK hashes. Without hashes every value is 2**32 - 1.
    """
    # Arrays are [shingles of a block, permutations]; `a` and `b` broadcast over the shingles.
    a, b = _coefficients(permutations)
    least = np.full(permutations, LARGEST_HASH)
    values, carries = np.empty((2, BLOCK, permutations), np.uint64)
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK, None].astype(np.uint64)
        x, carry = values[: len(block)], carries[: len(block)]
        # a * hash wraps at 64 bits before the modulus: BigCode's NumPy code does so too.
        np.multiply(block, a, out=x)
        np.add(x, b, out=x)
        # x mod 2**61 - 1 without a division: the bits above 61 are added to those below, and the
        # sum, which is at most the prime + 7, loses the prime where it reaches it. Adding 1 instead
        # of that gives the same lower 32 bits.
        np.right_shift(x, PRIME_BITS, out=carry)
        np.bitwise_and(x, PRIME, out=x)
        np.add(x, carry, out=x)
        np.add(x, 1, out=carry)
        np.right_shift(carry, PRIME_BITS, out=carry)
        np.add(x, carry, out=x)
        np.minimum(least, x.astype(np.uint32).min(axis=0), out=least)
    return least


def band_hashes(text: str, params: NearDuplicates) -> bytes:
    """Returns the hashes of the bands of a text's signature, BAND_BYTES each.

    They are empty if the step is off, and for a text with fewer tokens than a shingle, which takes
    part in exact deduplication only.
    """
    if not params.enabled:
        return b""
    hashes = shingle_hashes(shingles(text, params))
    if not len(hashes):
        return b""
    values = signature(hashes, params.permutations)
    bands, rows = params.banding()
    # Little-endian on every machine, because the hash is taken over these bytes. Values that no
    # band uses are left out.
    parts = values[: bands * rows].astype("<u4").reshape(bands, rows)
    return b"".join(
        hashlib.blake2b(part.tobytes(), digest_size=BAND_BYTES).digest() for part in parts
    )


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the Jaccard index of two sets of shingles, given as sorted distinct hashes."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 1.0
