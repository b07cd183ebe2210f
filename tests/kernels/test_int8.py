"""Matmuls of int8 weights against float64: exact in int32, and as precise as fp32 with digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels import int8

COLUMNS = arrays(np.float32, (5, 2), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def weights(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


# The smallest normal number: its scale would not be normal.
SMALLEST = np.full((5, 2), np.finfo(np.float32).tiny)


@given(COLUMNS)
@example(SMALLEST)
@settings(max_examples=50, deadline=None)
def test_digits_have_the_precision_of_fp32(x_DN):
    digits_DM, scales_M = jax.device_get(int8.split_columns(jnp.asarray(x_DN)))
    parts = (digits_DM.astype(np.float64) * scales_M).reshape(5, int8.DIGITS, 2)
    # Numbers below the smallest normal one may be flushed to 0.
    allowed = np.abs(x_DN).max(axis=0) * 2e-7 + 1e-37
    assert (np.abs(parts.sum(axis=1) - x_DN) <= allowed).all()


@given(COLUMNS)
@example(SMALLEST)
@settings(max_examples=50, deadline=None)
def test_columns_are_rounded_to_half_a_scale(x_DN):
    q_DN, scales_N = jax.device_get(int8.quantize_columns(jnp.asarray(x_DN)))
    errors = np.abs(q_DN.astype(np.float64) * scales_N - x_DN)
    assert (errors <= scales_N * (0.5 + 1e-4) + 1e-37).all()
    assert np.abs(q_DN.astype(int)).max() <= 127 and (scales_N > 0).all()


@pytest.mark.parametrize("columns", [1, 2, int8.MOST_DIGIT_COLUMNS, 40])
def test_float_columns_equal_float64(columns):
    rng = np.random.default_rng(columns)
    q_XD, x_DN = weights(rng, 2, 6, 300), rng.normal(size=(300, columns)).astype(np.float32)
    x_DN[0] = 1000  # an outlier, as activations have them
    exact = np.float64(q_XD) @ np.float64(x_DN)
    out_XN = int8.multiply(jnp.asarray(q_XD), jnp.asarray(x_DN))
    assert out_XN.dtype == jnp.float32
    np.testing.assert_allclose(out_XN, exact, atol=1e-5 * np.abs(exact).max())
    rows_NX = int8.rows_multiply(jnp.asarray(x_DN.T), jnp.asarray(q_XD[0].T))
    np.testing.assert_allclose(rows_NX, exact[0].T, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("columns", [1, 3])
def test_int_matmul_is_exact(columns):
    rng = np.random.default_rng(0)
    q_XD, x_DN = weights(rng, 3, 5, 2000), weights(rng, 3, 2000, columns)
    exact = q_XD.astype(np.int64) @ x_DN.astype(np.int64)
    assert (np.asarray(int8.int_matmul(q_XD, x_DN, batch=1)) == exact).all()
    assert (np.asarray(int8.int_matmul(q_XD[0], x_DN[0])) == exact[0]).all()
