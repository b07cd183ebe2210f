"""The bigram baseline is a distribution, ignores padding and borders, and has a low loss."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import toy

from codellama_jax.errors import UserError
from codellama_jax.probes import bigram

V = 12
few = hypothesis.settings(deadline=None, max_examples=40)


def packed(tokens: list[int]) -> dict[str, np.ndarray]:
    """Returns a batch of one sequence that holds one document."""
    ids = np.array([tokens], np.int32)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": np.ones(ids[:, 1:].shape)}


@pytest.mark.parametrize("batches", [[], [packed([3])]])
def test_nothing_to_count_is_one_line(batches):
    """As after a stage of 0 steps."""
    with pytest.raises(UserError, match="trained on no token"):
        bigram.fit(batches, V)


@few
@hypothesis.given(
    st.lists(st.lists(st.integers(0, V - 1), min_size=2, max_size=60), min_size=1, max_size=4)
)
def test_probabilities_are_positive_and_sum_to_one_after_every_history(documents):
    model = bigram.fit(map(packed, documents), V)
    histories, tokens = np.divmod(np.arange(V * V), V)
    probabilities = np.exp(-model.losses(histories, tokens)).reshape(V, V)
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)


def test_discounts_are_the_published_ones():
    """Chen and Goodman's, for 8, 4, 3 and 2 pairs that occur once to four times: Y = 1/2."""
    counts = np.array([1] * 8 + [2] * 4 + [3] * 3 + [4] * 2 + [9])
    discounts = bigram._discounts(counts)
    np.testing.assert_allclose(
        [discounts[counts == n][0] for n in (1, 2, 3, 4, 9)], [1 / 2, 7 / 8, 5 / 3, 5 / 3, 5 / 3]
    )


def test_padding_is_neither_counted_nor_measured():
    batch = toy.batch(rows=6, length=32, vocab=V)
    real = batch["segment_ids"] > 0
    spoilt = batch | {
        key: np.where(real, batch[key], V - 1 - batch[key]) for key in ("tokens", "targets")
    }
    model, other = bigram.fit([batch], V), bigram.fit([spoilt], V)
    loss, tokens = model.evaluate([batch])
    assert other.evaluate([spoilt]) == (loss, tokens)
    assert tokens == real.sum() and model.counts_V.sum() == real.sum()


def test_counts_do_not_depend_on_the_batches():
    batch = toy.batch(rows=6, length=32, vocab=V)
    parts = []
    for i in range(6):
        parts.append({key: array[i : i + 1] for key, array in batch.items()})
    together, apart = bigram.fit([batch], V), bigram.fit(iter(parts), V)
    assert together.evaluate([batch]) == pytest.approx(apart.evaluate(parts))


def test_comes_near_the_entropy_of_a_bigram_source():
    """The loss of no model is below the entropy of the source; that of a good one is near it."""
    rng = np.random.default_rng(0)
    source_VV = rng.dirichlet(np.full(64, 0.1), 64)
    training, held_out = (packed(_walk(source_VV, 40_000, rng)) for _ in range(2))
    loss, _ = bigram.fit([training], 64).evaluate([held_out])
    entropy = -np.log(source_VV[held_out["tokens"], held_out["targets"]]).mean()
    assert entropy - 0.005 < loss < entropy + 0.05


def test_is_better_than_add_one_smoothing_and_than_unigrams():
    rng = np.random.default_rng(1)
    source_VV = rng.dirichlet(np.full(64, 0.1), 64)
    training, held_out = (packed(_walk(source_VV, n, rng)) for n in (3000, 3000))
    loss, _ = bigram.fit([training], 64).evaluate([held_out])
    counts_VV = np.zeros((64, 64))
    np.add.at(counts_VV, (training["tokens"], training["targets"]), 1)
    add_one_VV = (counts_VV + 1) / (counts_VV + 1).sum(1, keepdims=True)
    unigram_V = (counts_VV.sum(0) + 1) / (counts_VV.sum() + 64)
    assert loss < -np.log(add_one_VV[held_out["tokens"], held_out["targets"]]).mean()
    assert loss < -np.log(unigram_V[held_out["targets"]]).mean()


def _walk(source_VV: np.ndarray, steps: int, rng: np.random.Generator) -> list[int]:
    cumulative_VV, points = source_VV.cumsum(1), rng.random(steps)
    tokens = [0]
    for point in points:
        tokens.append(
            min(int(np.searchsorted(cumulative_VV[tokens[-1]], point)), len(source_VV) - 1)
        )
    return tokens
