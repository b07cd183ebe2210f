"""N-grams and words of texts beside sets of Python."""

import hypothesis
import hypothesis.strategies as st

from codellama_jax.data.prepare.contamination.grams import Grams, WordSets

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "c", "dé"]), max_size=12)


@hypothesis.given(st.lists(WORDS, max_size=4), WORDS, st.integers(2, 3))
@hypothesis.settings(max_examples=200, deadline=None)
def test_every_place_of_a_gram_is_known(texts, document, size):
    grams = Grams([" ".join(words) for words in texts], size, False, False)
    assert grams.lengths == [len(words) for words in texts]
    positions, keys = grams.matches(grams.units(" ".join(document).encode()))
    expected = {}
    for position in range(len(document) - size + 1):
        places = []
        for number, words in enumerate(texts):
            for start in range(len(words) - size + 1):
                if words[start : start + size] == document[position : position + size]:
                    places.append((number, start))
        if places:
            expected[position] = places
    assert positions.tolist() == list(expected)
    assert [list(grams.places(key)) for key in keys] == list(expected.values())
    assert [grams.owner(key) for key in keys] == [places[0][0] for places in expected.values()]


@hypothesis.given(st.lists(WORDS, max_size=5), WORDS, st.sampled_from([0.25, 0.5, 1.0]))
@hypothesis.settings(max_examples=200, deadline=None)
def test_similar_texts_are_those_of_the_jaccard_index(texts, document, least):
    sets = WordSets([" ".join(words) for words in texts])
    expected = []
    for number, words in enumerate(texts):
        shared, union = set(words) & set(document), set(words) | set(document)
        if document and len(shared) >= least * len(union):
            expected.append(number)
    assert sets.similar(" ".join(document).encode(), least) == expected
