"""The ranked objectives: hand-made cases of the paper's formula, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codellama_jax.training.objectives import rank_weights

# Teacher with one prompt token and two answer tokens, student with two and one, then padding.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0]], np.int32)


def signed(gap):
    return np.array([[0, gap, gap, 0, 0, -gap, 0]], np.float32)


def summed(losses_BT, signed_BT, segment_ids_BT, **options):
    """Returns the weights of the sum of both losses, and the number of pairs."""
    tuning_BT, rank_BT, pairs = rank_weights(losses_BT, signed_BT, segment_ids_BT, **options)
    return tuning_BT + rank_BT, pairs


def loss(losses_T, gap, **options):
    losses_BT = jnp.asarray([losses_T], jnp.float32)
    options = {"mean": True, "unit_gaps": False, **options}
    weights_BT, pairs = summed(losses_BT, signed(gap), SEGMENTS, **options)
    assert pairs == 1
    return float(jnp.sum(weights_BT * losses_BT)), np.asarray(weights_BT[0])


def test_a_student_that_is_more_likely_costs_the_difference():
    # p_teacher = -1.0, p_student = -0.5, scores 1 and 0: L_rank = 0.5, and L_ft = 1.0 as a mean.
    total, weights_T = loss([9, 0.5, 1.5, 9, 9, 0.5, 9], 1.0)
    assert total == pytest.approx(0.5 + 1.0)
    # By p_teacher the gradient of L_rank is -1 and by p_student +1; p is the mean of -loss.
    rank_T = weights_T - np.array([0, 0.5, 0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(rank_T, [0, 0.5, 0.5, 0, 0, -1, 0])


def test_a_teacher_that_is_more_likely_costs_nothing_beside_its_tuning():
    total, weights_T = loss([9, 0.25, 0.75, 9, 9, 1.0, 9], 1.0)
    assert total == pytest.approx(0.5)
    np.testing.assert_allclose(weights_T, [0, 0.5, 0.5, 0, 0, 0, 0])


def test_equal_likelihoods_cost_nothing():
    total, _ = loss([9, 1.0, 1.0, 9, 9, 1.0, 9], 1.0)
    assert total == pytest.approx(1.0)


def test_the_gap_scales_the_rank_term_except_in_rrhf():
    losses_T = [9, 0.5, 1.5, 9, 9, 0.5, 9]
    assert loss(losses_T, 1 / 3)[0] == pytest.approx(0.5 / 3 + 1.0)
    assert loss(losses_T, 1 / 3, unit_gaps=True)[0] == pytest.approx(0.5 + 1.0)
    assert loss(losses_T, 1.0)[0] == loss(losses_T, 1.0, unit_gaps=True)[0]


def test_fine_tuning_on_the_chosen_answers_has_no_rank_term():
    total, weights_T = loss([9, 0.5, 1.5, 9, 9, 0.5, 9], 1.0, mean=False, has_rank=False)
    assert total == pytest.approx(2.0)
    np.testing.assert_array_equal(weights_T, [0, 1, 1, 0, 0, 0, 0])


def test_tuning_is_a_sum_as_printed_or_a_mean():
    losses_T = [9, 0.5, 1.5, 9, 9, 0.5, 9]
    assert loss(losses_T, 1.0, mean=False)[0] == pytest.approx(0.5 + 2.0)


def test_pairs_of_one_sequence_do_not_mix():
    """The sum of two pairs in one sequence is that of the pairs alone."""
    rng = np.random.default_rng(0)
    segments_BT = np.array([[1, 1, 2, 2, 3, 3, 3, 4, 4, 0]], np.int32)
    signed_BT = np.array([[0, 0.5, 0, -0.5, 0, 1, 1, -1, -1, 0]], np.float32)
    for _ in range(20):
        losses_BT = rng.uniform(0, 2, segments_BT.shape).astype(np.float32)

        def value(keep_T, losses_BT=losses_BT):
            kept = losses_BT[:, keep_T], signed_BT[:, keep_T], segments_BT[:, keep_T]
            weights_BT, pairs = summed(*kept, mean=False, unit_gaps=False)
            return float(jnp.sum(weights_BT * kept[0])), float(pairs)

        both, pairs = value(slice(0, 10))
        first, second = value(slice(0, 4)), value(slice(4, 9))
        assert pairs == 2
        assert both == pytest.approx(first[0] + second[0], rel=1e-5)


def test_the_weights_are_constant_to_the_gradient():
    losses_BT = jnp.asarray([[9, 0.5, 1.5, 9, 9, 0.5, 9]], jnp.float32)

    def total(losses_BT):
        weights_BT, _ = summed(losses_BT, signed(1.0), SEGMENTS, mean=True, unit_gaps=False)
        return jnp.sum(weights_BT * losses_BT)

    expected, _ = summed(losses_BT, signed(1.0), SEGMENTS, mean=True, unit_gaps=False)
    np.testing.assert_allclose(jax.grad(total)(losses_BT), expected)
