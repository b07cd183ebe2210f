"""Attention in a loop over blocks, which long sequences on a CPU or GPU use."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import compiled, oracle, problem, relative_error, visible, with_gradients

from codellama_jax.models import decoding
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.llama.sizes import TOY
from kernels.flash_attention import blocked, xla


def looped(q, k, v, _q_positions, _kv_positions, segments=None, _=None):
    return blocked.attention(q, k, v, segments)


@pytest.mark.parametrize(
    ("length", "dtype", "documents"),
    [(300, "float32", True), (256, "float32", False), (40, "bfloat16", True)],
)
def test_agrees_with_float64(length, dtype, documents):
    """Lengths of several blocks with and without a remainder, and shorter than one block."""
    given = problem(3, 2, length, 4, 2, 16, dtype, documents)

    def solve(qkv, do):
        return with_gradients(looped, qkv, do, given[2])

    for actual, expected in zip(compiled(solve, *given[:2]), oracle(*given)):
        assert relative_error(actual, expected) <= {"float32": 2e-5, "bfloat16": 1e-2}[dtype]


def test_long_rows_are_looped_and_short_ones_unrolled(monkeypatch):
    """At a length that both can compute they agree."""
    qkv, _, rows = problem(0, 1, 257, 2, 1, 16)
    looped_lengths = []

    def looped_attention(q_BTNH, *others):
        looped_lengths.append(q_BTNH.shape[1])
        return attention(q_BTNH, *others)

    attention = blocked.attention
    monkeypatch.setattr(blocked, "attention", looped_attention)
    monkeypatch.setattr(xla, "longest_unrolled", lambda dtype: 257)
    unrolled = xla.attention(*qkv, *rows)
    assert not looped_lengths
    monkeypatch.setattr(xla, "longest_unrolled", lambda dtype: 256)
    looped_out = xla.attention(*qkv, *rows)
    assert looped_lengths == [257]
    np.testing.assert_allclose(
        np.where(visible(rows), looped_out, 0), np.where(visible(rows), unrolled, 0), atol=2e-6
    )


def test_each_platform_and_dtype_has_its_own_limit(monkeypatch):
    lengths = {}
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(xla, "platform", functools.partial(str, platform))
        for dtype in ("float32", "bfloat16"):
            lengths[platform, dtype] = xla.longest_unrolled(jnp.dtype(dtype))
    assert lengths["cpu", "bfloat16"] < lengths["cpu", "float32"]
    assert lengths["gpu", "bfloat16"] == lengths["gpu", "float32"] == 2048


def temporaries(function, length):
    x = jax.ShapeDtypeStruct((1, length, 2, 32), jnp.float32)
    positions = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def call(x, positions):
        return function(x, x, x, positions, positions)

    return jax.jit(call).lower(x, positions).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("gradients", [False, True])
def test_memory_grows_linearly(gradients):
    """Four times the length takes at most four times the memory, and at most that of ten inputs."""

    def loss(x, positions):
        return xla.attention(x, x, x, positions, positions).sum()

    def function(x, _k, _v, positions, _positions):
        if gradients:
            return jax.grad(loss)(x, positions)
        return xla.attention(x, x, x, positions, positions)

    short, long = temporaries(function, 4096), temporaries(function, 16_384)
    assert long <= 4 * short
    assert long <= 10 * 16_384 * 2 * 32 * 4


def test_memory_of_a_prompt_grows_linearly():
    """Reading 131,072 tokens takes less than ten times the memory of its keys and values."""
    config = decoding.for_decoding(TOY["toy"])
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.eval_shape(Llama(config).init, jax.random.key(0), tokens, tokens)["params"]
    weights = jax.eval_shape(decoding.prepare, config, nn.unbox(params))

    def memory(length):
        shape = jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
        prefill = jax.jit(decoding.prefill, static_argnums=(0, 4))
        return prefill.lower(config, weights, *shape, 128).compile().memory_analysis()

    short, long = memory(4096), memory(131_072)
    assert long.temp_size_in_bytes <= 32 * short.temp_size_in_bytes
    assert long.temp_size_in_bytes <= 10 * long.output_size_in_bytes
