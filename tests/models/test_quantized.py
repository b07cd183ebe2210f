"""Quantized weights: rounding, packing, and matmuls that equal those of the dequantized weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codellama_jax.models import decoding, quantized
from codellama_jax.models.quantized import SCHEMES, multiply, pack, quantize_w8a8, unpack

INPUTS = 200  # the second group of int4 is not full
# Rows of very different magnitudes, of zeros, and smaller than fp16 can scale well. The scales of
# int4 are fp16, which ends at 65,504: a tail of `standard_t` times 1e4 would be beyond it.
MAGNITUDES = np.array([1.0, 0.0, 1e-3, 3e-6, 1e-7, 1e3], np.float32)[:, None]


def rows(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_t(3, (6, INPUTS)).astype(np.float32) * MAGNITUDES


@pytest.mark.parametrize("scheme", SCHEMES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_no_weight_is_further_than_half_a_scale(scheme, seed):
    w_XI = rows(seed)
    weight = SCHEMES[scheme](jnp.asarray(w_XI))
    if scheme == "int4":
        scales = np.repeat(np.float64(weight.scales_CX), 128, axis=0)[:INPUTS].T
    else:
        scales = np.float64(weight.scales_X)[:, None]
    errors = np.abs(np.float64(weight.dequantized()) - w_XI)
    # fp32 rounds the quotients and the products.
    assert (errors <= scales * (0.5 + 1e-4)).all()
    assert (scales > 0).all() and (errors[1] == 0).all()


def test_int8_rounds_with_the_scale_that_fp16_holds():
    """As CodeGeeX; 0.1 / 127 is no number of fp16."""
    w_XI = np.linspace(-0.1, 0.1, 255, dtype=np.float32)[None]
    weight = SCHEMES["int8"](jnp.asarray(w_XI))
    assert weight.scales_X.dtype == jnp.float16
    scale = np.float32(np.float16(0.1 / 127))
    assert (np.asarray(weight.values_XI) == np.clip(np.round(w_XI / scale), -127, 127)).all()
    assert SCHEMES["w8a8"](jnp.asarray(w_XI)).scales_X.dtype == jnp.float32


@given(arrays(np.int8, (3, 4, 6), elements=st.integers(-8, 7)))
@settings(max_examples=50, deadline=None)
def test_packing_loses_nothing(values):
    packed = pack(jnp.asarray(values))
    assert packed.shape == (3, 4, 3) and packed.dtype == jnp.int8
    assert (np.concatenate(unpack(packed), axis=-1) == values).all()


@pytest.mark.parametrize("columns", [1, 4, 50])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_matmul_equals_that_of_the_dequantized_weight(scheme, columns):
    rng = np.random.default_rng(columns)
    w_XI, x_IN = rng.normal(size=(2, 8, INPUTS)), rng.normal(size=(INPUTS, columns))
    weight = SCHEMES[scheme](jnp.asarray(w_XI, jnp.float32))
    exact = np.float64(weight.dequantized()) @ x_IN
    out_XN = weight.multiply(jnp.asarray(x_IN, jnp.float32))
    np.testing.assert_allclose(out_XN, exact, atol=1e-5 * np.abs(exact).max())
    flat = weight.with_outputs(-1).multiply(jnp.asarray(x_IN, jnp.float32))
    np.testing.assert_allclose(flat, exact.reshape(16, columns), atol=1e-5 * np.abs(exact).max())


def test_w8a8_rounds_each_tokens_activations():
    """The formulas of CTranslate2 in float64: q = round(127 / absmax x), exact integer sums."""
    rng = np.random.default_rng(0)
    w_XI, x_IN = rng.normal(size=(8, INPUTS)), rng.normal(size=(INPUTS, 3)) * [1, 50, 0]
    scales_X, scales_N = 127 / np.abs(w_XI).max(1), 127 / np.maximum(np.abs(x_IN).max(0), 1e-30)
    sums_XN = np.round(w_XI * scales_X[:, None]) @ np.round(x_IN * scales_N[None])
    expected = sums_XN / scales_X[:, None] / scales_N[None]
    out_XN = quantize_w8a8(jnp.asarray(w_XI, jnp.float32)).multiply(jnp.asarray(x_IN, jnp.float32))
    np.testing.assert_allclose(out_XN, expected, atol=1e-5 * np.abs(expected).max())
    # Not the result of weight-only quantization.
    assert np.abs(out_XN - (w_XI @ x_IN))[:, 1].max() > 1e-3


def test_a_bf16_matmul_is_bf16():
    weight = SCHEMES["int8"](jnp.ones((4, INPUTS)))
    out = jax.eval_shape(weight.multiply, jax.ShapeDtypeStruct((INPUTS, 64), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16 and out.shape == (4, 64)


@pytest.mark.parametrize("scheme", [*SCHEMES, ""])
def test_a_tpu_multiplies_a_single_column_as_one_of_two(monkeypatch, scheme):
    """XLA computes one column alone with the vector units of a TPU."""
    w_XI = jnp.asarray(rows(3))
    weight = SCHEMES[scheme](w_XI) if scheme else w_XI
    x_I1 = jnp.asarray(np.random.default_rng(4).normal(size=(w_XI.shape[1], 1)), jnp.float32)
    expected_X1, expected_1V = multiply(weight, x_I1), decoding.logits_of(w_XI, x_I1)
    monkeypatch.setattr(quantized, "platform", lambda: "tpu")
    # Another function: JAX would not trace the same one again.
    on_tpu = jax.make_jaxpr(lambda x_I1: multiply(weight, x_I1))(x_I1)
    widths = [e.outvars[0].aval.shape[-1] for e in on_tpu.eqns if "dot" in e.primitive.name]
    assert 1 not in widths and (scheme or widths == [2])
    np.testing.assert_allclose(multiply(weight, x_I1), expected_X1, rtol=1e-5, atol=1e-5)
    logits_1V = decoding.logits_of(w_XI, x_I1)
    np.testing.assert_allclose(logits_1V, expected_1V, rtol=1e-5, atol=1e-5)
    assert multiply(weight, x_I1).shape == expected_X1.shape
