"""Checksums of arrays: equal on any mesh, different for any flipped bit."""

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.checkpoints import checksums
from codellama_jax.errors import UserError

ARRAY = np.random.default_rng(0).normal(size=(6, 8, 5)).astype(np.float32)


def sum_of(array) -> int:
    return checksums.of_tree({"x": jnp.asarray(array)})["x"]


def reference(array: np.ndarray) -> int:
    """The same checksum in NumPy."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = flat.view(checksums.BITS[array.dtype.itemsize]).astype(np.uint32)
    hashes = checksums.element_hash(bits, np.arange(bits.size, dtype=np.uint32))
    return int(hashes.sum(dtype=np.uint64)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_numpy_and_the_device_agree(dtype):
    array = np.asarray(jnp.asarray(ARRAY * 100).astype(dtype))
    assert reference(array) == sum_of(array)
    scalar = np.asarray(jnp.asarray(3, dtype))
    assert reference(scalar) == sum_of(scalar)


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
    assert reference(bits.view(np.float32)) != reference(ARRAY)


def test_moved_elements_are_noticed():
    assert reference(ARRAY[::-1]) != reference(ARRAY)
    assert reference(-ARRAY) != reference(ARRAY)  # every sign bit


def test_the_array_that_differs_is_named():
    tree = {"a": jnp.zeros(3), "b": {"c": jnp.asarray(ARRAY)}}
    saved = checksums.of_tree(tree)
    assert list(saved) == ["a", "b.c"]
    checksums.check(tree, saved)
    tree["b"]["c"] = tree["b"]["c"].at[0, 0, 0].multiply(-1)
    with pytest.raises(UserError, match=r"b\.c does not match its checksum"):
        checksums.check(tree, saved)
    with pytest.raises(UserError, match="a does not match"):
        checksums.check(tree, {})
