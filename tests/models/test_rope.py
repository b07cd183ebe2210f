"""RoPE scaled for a longer context; `test_llama_shapes.py` compares it with transformers."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from codellama_jax.checked import FieldError
from codellama_jax.models.layers import rope_frequencies
from codellama_jax.models.llama.rope import document_lengths, llama3_frequencies, rope

LLAMA3 = dataclasses.replace(
    toy.MODEL,
    head_dim=128,
    rope_theta=5e5,
    rope_type="llama3",
    rope_scaling=8.0,
    rope_original_length=8192,
)
DYNAMIC = dataclasses.replace(
    toy.MODEL, rope_type="dynamic", rope_scaling=2.0, rope_original_length=16
)


def test_llama_3_divides_long_wavelengths_only():
    """Llama 3.1's values: wavelengths to 2,048 stay, those from 8,192 are divided by 8."""
    scaled, plain = llama3_frequencies(LLAMA3), rope_frequencies(128, 5e5)
    kinds = set()
    for new, old in zip(scaled.astype(float), plain.astype(float)):
        wavelength = 2 * math.pi / old
        if wavelength <= 2048:
            kinds.add("kept")
            assert new == old
        elif wavelength >= 8192:
            kinds.add("divided")
            assert new == pytest.approx(old / 8, rel=1e-6)
        else:
            kinds.add("between")
            share = (8192 / wavelength - 1) / 3
            assert new == pytest.approx((1 - share) * old / 8 + share * old, rel=1e-5)
    assert kinds == {"kept", "divided", "between"}


def test_lengths_are_those_of_the_documents():
    positions = jnp.array([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6]])
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0], [1] * 7])
    expected = [[3, 3, 3, 2, 2, 1, 1], [7] * 7]
    np.testing.assert_array_equal(document_lengths(positions, segments), expected)
    np.testing.assert_array_equal(document_lengths(positions, None), [[3] * 7, [7] * 7])


def test_dynamic_scaling_depends_on_the_length_above_the_original():
    positions = jnp.arange(16)[None]

    def angles(length):
        return np.asarray(rope(DYNAMIC, positions, jnp.array([[length]]))[0])

    plain = dataclasses.replace(DYNAMIC, rope_type="linear", rope_scaling=1.0)
    np.testing.assert_array_equal(angles(16), rope(plain, positions, positions)[0])
    np.testing.assert_array_equal(angles(3), angles(16))
    # The base of a sequence of 24 tokens: 2 x 24 / 16 - 1 = 2 times as long, 8 / 6 for the width.
    base = 1e4 * 2 ** (8 / 6)
    larger = dataclasses.replace(plain, rope_theta=base)
    np.testing.assert_allclose(angles(24), rope(larger, positions, positions)[0], atol=1e-5)


MISTAKES = [
    ({"rope_type": "dynamic"}, "rope_original_length is 0: with rope_type dynamic it must be"),
    ({"rope_type": "yarn"}, "rope_type is 'yarn': it must be one of linear, llama3, dynamic"),
    (
        {"rope_type": "llama3", "rope_original_length": 8, "rope_high_factor": 1.0},
        "rope_high_factor is 1: it must be above rope_low_factor, which is 1",
    ),
    ({"attention_bias": "q"}, "attention_bias is 'q': it must be one of none, qkv, all"),
    (
        {"rope_type": "dynamic", "rope_original_length": 8, "head_dim": 2},
        "head_dim is 2: dynamic RoPE divides by head_dim - 2",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_names_the_field(changes, message):
    with pytest.raises(FieldError, match=message):
        dataclasses.replace(toy.MODEL, **changes)
