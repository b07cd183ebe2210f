"""Checksums of arrays: equal on any mesh and in parts, different for any flipped bit."""

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.errors import UserError
from codellama_jax.training import checksums

ARRAY = np.random.default_rng(0).normal(size=(6, 8, 5)).astype(np.float32)


def sum_of(array) -> int:
    return checksums.of_tree({"x": jnp.asarray(array)})["x"][1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_numpy_and_the_device_agree(dtype):
    array = np.asarray(jnp.asarray(ARRAY * 100).astype(dtype))
    assert checksums.of_part(array) == sum_of(array)
    scalar = np.asarray(jnp.asarray(3, dtype))
    assert checksums.of_part(scalar) == sum_of(scalar)


def test_parts_add_up_to_the_array(monkeypatch):
    monkeypatch.setattr(checksums, "PART", 7)
    parts = [checksums.of_part(layer, i * layer.size) for i, layer in enumerate(ARRAY)]
    assert sum(parts) % 2**32 == sum_of(ARRAY)


def test_the_mesh_does_not_matter():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("a", "b"))
    placed = jax.device_put(ARRAY, NamedSharding(mesh, PartitionSpec("a", "b")))
    chex.assert_equal(sum_of(placed), sum_of(ARRAY))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(st.integers(0, ARRAY.size - 1), st.integers(0, 31)), min_size=1))
def test_any_flipped_bits_are_noticed(flips):
    bits = ARRAY.copy().view(np.uint32).reshape(-1)
    for index, bit in flips:
        bits[index] ^= np.uint32(1 << bit)
    assert checksums.of_part(bits.view(np.float32)) != checksums.of_part(ARRAY)


def test_moved_elements_are_noticed():
    assert checksums.of_part(ARRAY[::-1]) != checksums.of_part(ARRAY)
    assert checksums.of_part(-ARRAY) != checksums.of_part(ARRAY)  # every sign bit


def test_what_was_widened_on_load_is_checked_as_it_was_stored():
    stored = jnp.asarray(ARRAY, jnp.bfloat16)
    saved = checksums.of_tree({"x": stored})
    assert saved["x"][0] == "bfloat16"
    checksums.check({"x": stored.astype(jnp.float32)}, saved)
    with pytest.raises(UserError, match="x does not match its checksum"):
        checksums.check({"x": stored.astype(jnp.float32) * 1.01}, saved)
    with pytest.raises(UserError, match="x does not match"):
        checksums.check({"x": stored}, {})
