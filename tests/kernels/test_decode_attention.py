"""Decoding attention against the float64 oracle: lengths, groups, blocks after a sequence's end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # races_found has no public name
from jax.experimental.pallas import tpu as pltpu

from kernels.decode_attention import IMPLEMENTATIONS, decode_attention, pallas_tpu, reference

TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    kernel = functools.partial(pallas_tpu.decode_attention, block=128)
    monkeypatch.setitem(IMPLEMENTATIONS, "pallas_tpu", kernel)


def problem(seed, dtype="float32"):
    """Returns q_MGH, k_MSH, v_MSH and lengths_B of random sizes.

    One sequence has one filled slot, another one fills all slots.
    """
    rng = np.random.default_rng(seed)
    B, K, G, H, S = (
        int(rng.choice(sizes)) for sizes in ((2, 3), (1, 2), (1, 3, 8), (32, 128), (100, 256, 300))
    )
    shapes = (K * B, G, H), (K * B, S, H), (K * B, S, H)
    return *(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes), np.array(
        [1, S, S // 2 + 1][:B]
    )


def oracle(q_MGH, k_MSH, v_MSH, lengths_B):
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.float64(a)) for a in (q_MGH, k_MSH, v_MSH)]
        lengths_M = np.tile(lengths_B, len(k_MSH) // len(lengths_B))
        return jax.device_get(reference.decode_attention(*exact, lengths_M))


def relative_error(actual, expected):
    return (
        np.abs(np.float64(actual) - np.float64(expected)).max() / np.abs(np.float64(expected)).max()
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("seed", "dtype"), [(0, "float32"), (1, "float32"), (2, "float32"), (3, "bfloat16")]
)
def test_equals_oracle(implementation, seed, dtype):
    inputs = problem(seed, dtype)
    actual = jax.jit(lambda *a: decode_attention(*a, implementation=implementation))(*inputs)
    assert actual.dtype == dtype and relative_error(actual, oracle(*inputs)) < TOLERANCE[dtype]


def int8_problem(seed, dtype="float32"):
    """Returns the problem with an int8 cache, its scales, and the cache in full."""
    q_MGH, k_MSH, v_MSH, lengths_B = problem(seed, dtype)
    rng, caches, scales, dequantized = np.random.default_rng(seed), [], [], []
    for a_MSH in (k_MSH, v_MSH):
        caches.append(jnp.asarray(rng.integers(-127, 128, a_MSH.shape), jnp.int8))
        scales.append(jnp.asarray(rng.uniform(1e-3, 3e-2, a_MSH.shape[:2]), jnp.float32))
        dequantized.append(np.float64(caches[-1]) * np.float64(scales[-1])[..., None])
    return (q_MGH, *caches, lengths_B), tuple(scales), (q_MGH, *dequantized, lengths_B)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("seed", "dtype"), [(0, "float32"), (1, "float32"), (3, "bfloat16")])
def test_an_int8_cache_equals_the_oracle_of_its_values(implementation, seed, dtype):
    inputs, scales_MS, dequantized = int8_problem(seed, dtype)
    call = functools.partial(decode_attention, implementation=implementation)
    actual = jax.jit(call)(*inputs, scales_MS=scales_MS)
    assert actual.dtype == dtype
    assert relative_error(actual, oracle(*dequantized)) < TOLERANCE[dtype]


def test_heads_split_over_devices_equal_whole():
    q_MGH, k_MSH, v_MSH, lengths_B = problem(0)
    q_MGH, k_MSH, v_MSH = (jnp.concatenate([x, 2 * x]) for x in (q_MGH, k_MSH, v_MSH))
    call = functools.partial(decode_attention, implementation="pallas_tpu", head_axes=("tensor",))
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=auto, devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        parts = jax.jit(call)(q_MGH, k_MSH, v_MSH, lengths_B)
    whole = decode_attention(q_MGH, k_MSH, v_MSH, lengths_B, implementation="reference")
    assert relative_error(parts, whole) < 2e-5


def test_no_race_no_read_out_of_bounds_and_nothing_behind_a_row():
    """Slots after the end of a sequence hold NaN."""
    q_MGH, k_MSH, v_MSH, lengths_B = problem(5)
    free_MS1 = (
        np.arange(k_MSH.shape[1]) >= np.tile(lengths_B, len(k_MSH) // len(lengths_B))[:, None]
    )[..., None]
    k_MSH, v_MSH = (jnp.where(free_MS1, jnp.nan, x) for x in (k_MSH, v_MSH))
    checked = pltpu.InterpretParams(
        detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
    )
    lengths_M = jnp.tile(lengths_B, len(k_MSH) // len(lengths_B))
    run = jax.jit(lambda *a: pallas_tpu.decode_attention(*a, block=128, interpret=checked))
    actual = run(q_MGH, k_MSH, v_MSH, lengths_M)
    expected = oracle(q_MGH, jnp.where(free_MS1, 0, k_MSH), v_MSH, lengths_B)
    assert relative_error(actual, expected) < 2e-5
    assert not interpret_pallas_call.races.races_found


def test_refuses_what_it_cannot_do():
    q_MGH, k_MSH, v_MSH, lengths_B = problem(0)
    with pytest.raises(ValueError, match="no decode attention 'fast'; choose one of"):
        decode_attention(q_MGH, k_MSH, v_MSH, lengths_B, implementation="fast")
    with pytest.raises(ValueError, match="not a multiple of 5 sequences"):
        decode_attention(q_MGH, k_MSH, v_MSH, np.ones(5, int))
    with pytest.raises(ValueError, match="a cache of int8 and float32: only int8 has scales_MS"):
        decode_attention(q_MGH, k_MSH.astype(jnp.int8), v_MSH, lengths_B, scales_MS=(0, 0))
