"""Values of BigCode's near_deduplication/minhash_deduplication.py, and datasketch as an oracle."""

import hashlib
import random
import re
import struct

import numpy as np
import pytest
from datasketch import MinHash

from codellama_jax.checked import FieldError
from codellama_jax.data.prepare.duplicates import minhash
from codellama_jax.data.prepare.duplicates.minhash import NearDuplicates

CODE = """def add(a, b):
    # Größe: π ist 3.14
    return a+b  # naïve

print(add(1, 2),\tadd(3, 4))
"""


def sha1_hash32(data):
    return struct.unpack("<I", hashlib.sha1(data).digest()[:4])[0]


def bigcode_shingles(text, n):
    """The shingles as BigCode's script makes them."""
    tokens = re.split("[^A-Za-z_0-9]", text)
    return {" ".join(tokens[i : i + n]).encode() for i in range(len(tokens) - n + 1)}


def words(seed, count, vocabulary=10_000):
    generator = random.Random(seed)
    return [f"w{generator.randrange(vocabulary)}" for _ in range(count)]


def test_the_hash_is_the_published_one():
    assert minhash.shingle_hashes([b"hello"]).tolist() == [499578026]


@pytest.mark.parametrize(
    ("threshold", "permutations", "bands"),
    [
        (0.7, 256, (25, 10)),
        (0.85, 256, (13, 19)),
        (0.8, 256, (17, 15)),
        (0.7, 250, (25, 10)),
        (0.7, 128, (14, 9)),
        (0.58, 128, (21, 6)),
        (0.8, 128, (9, 13)),
    ],
)
def test_bands_are_the_published_optimum(threshold, permutations, bands):
    assert minhash.optimal_bands(threshold, permutations) == bands
    params = NearDuplicates(permutations=permutations, threshold=threshold, bands=0, rows=0)
    assert params.banding() == bands


@pytest.mark.parametrize(
    "text", [CODE, "a b c d e", "x" * 50, "\n\n\n\n\n", "a,b;c\r\nd e\x00f \ud800"]
)
@pytest.mark.parametrize("ngram", [1, 5])
def test_shingles_are_bigcodes(text, ngram):
    expected = bigcode_shingles(text, ngram)
    assert minhash.shingles(text, NearDuplicates(ngram=ngram)) == expected


def test_shingles_of_lines_are_stripped():
    params = NearDuplicates(unit="lines", ngram=1)
    assert minhash.shingles("  a\n\tb \r\n\nü", params) == {b"a", b"b", b"", "ü".encode()}
    pairs = NearDuplicates(unit="lines", ngram=2)
    assert minhash.shingles("  a\n\tb \nc\n", pairs) == {b"a\nb", b"b\nc"}
    assert minhash.shingles("", pairs) == minhash.shingles("a", pairs) == set()


@pytest.mark.parametrize("count", [5, 6, minhash.BLOCK + 4, 1000])
def test_signatures_are_bit_equal_to_bigcodes(count):
    # With this seed and scheme datasketch draws the permutations that BigCode draws.
    text = " ".join(words(count, count))
    expected = MinHash(256, seed=42, hashfunc=sha1_hash32, scheme="legacy")
    expected.update_batch(bigcode_shingles(text, 5))
    hashes = minhash.shingle_hashes(minhash.shingles(text, NearDuplicates()))
    ours = minhash.signature(hashes, 256)
    assert ours.dtype == np.uint32 and ours.tolist() == expected.hashvalues.tolist()


def test_the_modulus_is_exact_where_the_sum_reaches_the_prime(monkeypatch):
    prime = (1 << 61) - 1
    # Sums of the high and low bits just below, at and above the prime, and at the largest product.
    edges = [prime - 1, prime, prime + 1, 2 * prime, 2**63, 2**64 - 8, 2**64 - 7, 2**64 - 1]
    a, b = np.ones(len(edges), np.uint64), np.array(edges, np.uint64)
    monkeypatch.setattr(minhash, "_coefficients", lambda permutations: (a, b))
    expected = [(edge % prime) & 0xFFFFFFFF for edge in edges]
    assert minhash.signature(np.zeros(1, np.uint32), len(edges)).tolist() == expected


def test_bands_are_hashes_of_consecutive_values():
    params = NearDuplicates(True, permutations=30, bands=4, rows=7)
    values = minhash.signature(minhash.shingle_hashes(minhash.shingles(CODE, params)), 30)
    packed = minhash.band_hashes(CODE, params)
    assert len(packed) == 4 * minhash.BAND_BYTES
    second = struct.pack("<7I", *values[7:14].tolist())
    assert packed[8:16] == hashlib.blake2b(second, digest_size=8).digest()


def test_there_are_no_bands_of_short_texts_and_where_the_step_is_off():
    assert minhash.band_hashes(CODE, NearDuplicates(enabled=False)) == b""
    params = NearDuplicates(enabled=True)
    assert minhash.band_hashes("", params) == minhash.band_hashes("a b c d", params) == b""
    assert len(minhash.band_hashes("a b c d e", params)) == 25 * 8
    assert set(minhash.signature(np.zeros(0, np.uint32), 256)) == {2**32 - 1}


@pytest.mark.parametrize("changed", [0, 10, 40, 150, 400])
def test_signatures_estimate_the_jaccard_index(changed):
    first = words(1, 1500)
    second = first[:]
    for position in random.Random(changed).sample(range(1500), changed):
        second[position] = "other"
    params = NearDuplicates()
    a, b = (minhash.shingle_hashes(minhash.shingles(" ".join(t), params)) for t in (first, second))
    sets = [bigcode_shingles(" ".join(tokens), 5) for tokens in (first, second)]
    true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert minhash.jaccard(a, b) == pytest.approx(true, abs=1e-9)
    estimate = np.mean(minhash.signature(a, 256) == minhash.signature(b, 256))
    assert abs(estimate - true) <= 3 / np.sqrt(256)


def test_jaccard_index_of_empty_sets_is_one():
    empty, some = np.zeros(0, np.uint32), np.ones(1, np.uint32)
    assert minhash.jaccard(empty, empty) == 1 and minhash.jaccard(empty, some) == 0


def test_wrong_parameters_name_the_field():
    with pytest.raises(FieldError, match="bands is 30: 30 x 10 rows are too many"):
        NearDuplicates(bands=30)
    with pytest.raises(FieldError, match="bands is 0: set both bands and rows, or neither"):
        NearDuplicates(bands=0)
    with pytest.raises(FieldError, match="threshold is 0"):
        NearDuplicates(threshold=0)
    with pytest.raises(FieldError, match="unit is 'word'"):
        NearDuplicates(unit="word")
