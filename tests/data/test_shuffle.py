"""The order of a small source is Grain's own, in every epoch, whatever the number of documents."""

import grain
import hypothesis
import hypothesis.strategies as st
import pytest

from codellama_jax.data import shuffle

seeds = st.integers(0, 2**32 - 1)


def both(count, seed):
    """Returns the documents as shuffled here and by Grain."""
    source = grain.MapDataset.source(range(count))
    return shuffle.shuffled(source, seed), source.shuffle(seed)


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(
    count=st.integers(1, shuffle.MOST), seed=seeds, epoch=st.integers(0, 10**6), data=st.data()
)
def test_the_order_is_grains(count, seed, epoch, data):
    ours, grains = both(count, seed)
    for place in data.draw(st.lists(st.integers(0, count - 1), min_size=3, max_size=3)):
        assert ours[epoch * count + place] == grains[epoch * count + place]


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, shuffle.MOST, shuffle.MOST + 1, 70_000])
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_borders_of_counts_and_seeds(count, seed):
    ours, grains = both(count, seed)
    assert len(ours) == count
    for index in {0, count - 1, count, 2 * count - 1}:
        assert ours[index] == grains[index]


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(count=st.integers(1, shuffle.MOST), seed=seeds)
def test_an_epoch_holds_every_document_once(count, seed):
    assert sorted(shuffle.epoch_order(count, seed).tolist()) == list(range(count))


def test_a_part_of_the_stream():
    ours, grains = both(300, 7)
    assert [ours[5::100][i] for i in range(3)] == [grains[5::100][i] for i in range(3)]
