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


EDGES = (1, 127, 128, 129, 383, 384, 385, 768, 799, 800)  # of blocks of 384 and strips of 128


@pytest.mark.parametrize("cache", ["float32", "int8"])
@pytest.mark.parametrize(("heads", "slots"), [(1, 800), (10, 800), (5, 900)])
def test_heads_whose_blocks_differ_in_number(cache, heads, slots):
    """The cache ends within a block, is padded if it must be, and the cores' heads are unequal.

    Free slots hold NaN, or scales that are NaN.
    """
    rng = np.random.default_rng(heads + slots)
    lengths_M = np.array(EDGES)[-heads:]
    k_MSH, v_MSH = (rng.normal(size=(heads, slots, 32)) for _ in range(2))
    q_MGH = jnp.asarray(rng.normal(size=(heads, 3, 32)), jnp.float32)
    is_free_MS = np.arange(slots) >= lengths_M[:, None]
    scales = []
    if cache == "int8":
        k_MSH, v_MSH = (np.clip(np.round(a_MSH * 40), -127, 127) for a_MSH in (k_MSH, v_MSH))
        scales = [rng.uniform(1e-3, 3e-2, is_free_MS.shape) for _ in range(2)]
    used = [k_MSH, v_MSH]
    if scales:
        used = [a_MSH * scale_MS[..., None] for a_MSH, scale_MS in zip(used, scales)]
        scales = [jnp.float32(np.where(is_free_MS, np.nan, scale_MS)) for scale_MS in scales]
    else:
        k_MSH, v_MSH = (np.where(is_free_MS[..., None], np.nan, a_MSH) for a_MSH in used)
    arrays = jnp.asarray(k_MSH, cache), jnp.asarray(v_MSH, cache), jnp.asarray(lengths_M)
    run = jax.jit(functools.partial(pallas_tpu.decode_attention, block=384, interpret=True))
    actual = run(q_MGH, *arrays, *scales)
    assert relative_error(actual, oracle(q_MGH, *used, lengths_M)) < 2e-5


def test_an_empty_sequence_returns_zeros_and_changes_no_other():
    q_MGH, k_MSH, v_MSH, _ = problem(2)
    lengths_M = np.arange(len(k_MSH)) % 2 * 100
    run = functools.partial(pallas_tpu.decode_attention, block=128, interpret=True)
    actual = run(q_MGH, k_MSH * jnp.nan, v_MSH * jnp.nan, jnp.zeros_like(lengths_M))
    assert np.array_equal(actual, np.zeros_like(actual))
    actual = run(q_MGH, k_MSH, v_MSH, jnp.asarray(lengths_M))
    expected = oracle(q_MGH, k_MSH, v_MSH, lengths_M)
    assert relative_error(actual[1::2], expected[1::2]) < 2e-5
    assert not np.any(np.asarray(actual[::2]))


@pytest.mark.parametrize(
    ("slots", "dtype", "expected"),
    [
        (100_000, "bfloat16", 4096),  # 25 blocks
        (100_000, "int8", 7808),  # 13 equal blocks, not 12 of 8,192 and a short one
        (16_384, "int8", 4096),
        (16_384, "float32", 2048),
        (100, "int8", 128),
    ],
)
def test_block_sizes(slots, dtype, expected):
    assert pallas_tpu.block_slots(slots, 128, dtype) == expected


def test_refuses_what_it_cannot_do():
    q_MGH, k_MSH, v_MSH, lengths_B = problem(0)
    with pytest.raises(ValueError, match="no decode attention 'fast'; choose one of"):
        decode_attention(q_MGH, k_MSH, v_MSH, lengths_B, implementation="fast")
    with pytest.raises(ValueError, match="not a multiple of 5 sequences"):
        decode_attention(q_MGH, k_MSH, v_MSH, np.ones(5, int))
    with pytest.raises(ValueError, match="a cache of int8 and float32: only int8 has scales_MS"):
        decode_attention(q_MGH, k_MSH.astype(jnp.int8), v_MSH, lengths_B, scales_MS=(0, 0))
