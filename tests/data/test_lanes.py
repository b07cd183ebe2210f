"""The order in which lanes read the documents of their sources."""

import itertools
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np

from codellama_jax.data import pipeline


@hypothesis.settings(
    deadline=None, max_examples=20, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
@hypothesis.given(
    count=st.integers(1, 40), lanes=st.integers(1, 50), seed=st.integers(0, 2**32 - 1)
)
def test_lanes_read_every_document_once_an_epoch(count, lanes, seed):
    documents = list(range(count))
    streams = [
        pipeline.lane_documents(documents, lambda index, d: (index // count, d), seed, lane, lanes)
        for lane in range(lanes)
    ]
    epochs = 3
    read = [streams[i % lanes][i // lanes] for i in range(count * epochs)]
    assert sorted(read) == list(itertools.product(range(epochs), documents))
    assert [epoch for epoch, _ in read] == sorted(epoch for epoch, _ in read)


def test_every_epoch_has_another_order():
    """For many documents: Grain's permutation of 20 from seed 2385 is the identity."""
    stream = pipeline.lane_documents(list(range(1000)), lambda index, d: d, 0, 0, 1)
    orders = set()
    for epoch in range(3):
        orders.add(tuple(stream[epoch * 1000 + i] for i in range(1000)))
    assert len(orders) == 3
    assert tuple(range(1000)) not in orders


def test_the_seed_of_a_source_depends_on_its_name():
    """That of the four is as before there were others."""
    for index, name in enumerate(pipeline.SOURCES):
        before = int(np.random.SeedSequence([7, index]).generate_state(1)[0])
        assert pipeline.source_seed(7, name) == before
    assert pipeline.source_seed(7, "java") == 3061406341
    assert pipeline.source_seed(8, "java") != 3061406341 != pipeline.source_seed(7, "rust")


def test_the_order_of_a_huge_source_takes_no_memory():
    class Endless:
        def __len__(self):
            return 2_000_000_000

        def __getitem__(self, index):
            return index

    tracemalloc.start()
    stream = pipeline.lane_documents(Endless(), lambda index, d: d, 0, 3, 8)
    drawn = [stream[i] for i in range(1000)]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(set(drawn)) == 1000 and max(drawn) > 1_900_000_000


def test_a_lane_reads_from_every_source():
    for rows in (1, 2, 8, 13, 16, 64, 1024):
        for lane in range(min(rows, 16)):
            indices = range(lane, 2000 * rows, rows)
            drawn = [pipeline.source_of_sequence(index, (0.9, 0.1)) for index in indices]
            assert abs(np.mean(drawn) - 0.1) < 0.02
