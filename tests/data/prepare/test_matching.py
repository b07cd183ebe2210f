"""Needles and n-grams beside a plain loop that finds the same ones."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from codellama_jax.data.prepare.contamination import matching
from codellama_jax.data.prepare.contamination.matching import (
    HashTable,
    Needles,
    gram_hashes,
    units_of,
)

WORDS = re.compile(r"[0-9A-Za-z_\u0080-\U0010ffff]+")
TOKENS = re.compile(r"[0-9A-Za-z_\u0080-\U0010ffff]+|[!-/:-@\[-^`{-~]")
# Few letters, so that words and needles repeat.
TEXT = st.text(st.sampled_from("ab_1 \n\t(.+é𝄞\0"), max_size=200)


@pytest.mark.parametrize("chunk", [5, 2**18])
@pytest.mark.parametrize("punctuation", [False, True])
@hypothesis.given(TEXT)
@hypothesis.settings(max_examples=100, deadline=None)
def test_units_are_those_of_a_regular_expression(chunk, punctuation, text):
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "CHUNK", chunk)
        units = units_of(data, punctuation)
    spans = list(zip(units.starts.tolist(), units.ends.tolist()))
    words = [data[start:end].decode() for start, end in spans]
    assert words == (TOKENS if punctuation else WORDS).findall(text)
    # Equal words, and no others, have equal hashes.
    assert len(set(words)) == len(set(units.hashes.tolist()))
    assert len(set(zip(words, units.hashes.tolist()))) == len(set(words))


def test_a_long_word_is_compared_by_its_beginning_and_length():
    long = "x" * matching.LONGEST
    texts = [long, long + "a", long + "b", long + "ab", long[:-1] + "y"]
    hashes = [int(units_of(text.encode(), False).hashes[0]) for text in texts]
    assert hashes[1] == hashes[2]
    assert len(set(hashes)) == 4


@hypothesis.given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
@hypothesis.settings(max_examples=200, deadline=None)
def test_equal_grams_have_equal_hashes(numbers, size):
    hashes = gram_hashes(np.array(numbers, np.uint64) * matching.FIRST, size).tolist()
    grams = [tuple(numbers[i : i + size]) for i in range(len(numbers) - size + 1)]
    assert len(hashes) == len(grams)
    assert len(set(hashes)) == len(set(grams)) == len(set(zip(hashes, grams)))


def test_a_table_finds_its_keys_only():
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**64, 20_000, np.uint64))
    table = HashTable(hashes[::3])
    positions, keys = table.matches(hashes)
    assert positions.tolist() == list(range(0, len(hashes), 3))
    assert keys.tolist() == list(range(len(hashes[::3])))
    assert not len(HashTable(hashes[:0]).matches(hashes)[0])


@pytest.mark.parametrize("chunk", [17, 2**18])
@hypothesis.given(
    st.lists(st.text("ab ", min_size=16, max_size=24), max_size=5), st.text("ab ", max_size=300)
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_needles_are_found_where_a_search_finds_them(chunk, needles, text):
    # Half of the needles are planted.
    text = text + "".join(needles[::2]) + text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "CHUNK", chunk)
        matches = sorted(Needles([needle.encode() for needle in needles]).find(text.encode()))
    expected = []
    for number, needle in enumerate(needles):
        start = text.find(needle)
        if start >= 0:
            expected.append((number, start, start + len(needle)))
    assert matches == expected
