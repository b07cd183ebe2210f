"""The decay of attention with distance, by RoPE base."""

import math

import numpy as np
import pytest

from experiments.attention_decay import decay


@pytest.mark.parametrize(("theta", "scaling"), [(1e4, 1.0), (1e4, 4.0), (1e6, 1.0)])
def test_decay_is_the_dot_product_of_rotated_vectors(theta, scaling):
    """Of random vectors with themselves, rotated by the angles of the model."""
    from codellama_jax.models.layers import rope_angles

    distances, dim = np.array([0, 1, 3, 17, 200]), 64
    cos, _ = rope_angles(distances[None], dim, theta, scaling)
    np.testing.assert_allclose(
        decay(distances, theta, scaling, dim), np.asarray(cos)[0].mean(-1), atol=1e-5
    )
    direct = []
    for n in distances:
        terms = [math.cos(n / scaling * theta ** (-2 * i / dim)) for i in range(dim // 2)]
        direct.append(sum(terms) / (dim // 2))
    np.testing.assert_allclose(decay(distances, theta, scaling, dim), direct, atol=1e-12)


def test_attention_decays_less_with_a_larger_base_and_with_interpolation():
    far = np.arange(1000, 16_000, 500)
    assert (decay(far, 1e6) > decay(far, 1e4)).all() and (
        decay(far, 1e4, 4.0) > decay(far, 1e4)
    ).all()
    assert decay(np.zeros(1), 1e4)[0] == 1
