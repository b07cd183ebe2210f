"""A checksum per array, summed on the devices and the same on any mesh.

It is the sum modulo 2**32 of one hash per element, which mixes the element's bits with its index
in the array. A sum needs no order, so that every device adds its own elements. The hash is a
bijection of the bits: any change of one element changes the sum, and any other change goes
unnoticed with a probability of 2**-32.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codellama_jax.errors import UserError

INDEX_FACTOR = 0x9E3779B1
HASH_FACTORS = (0x85EBCA6B, 0xC2B2AE35)  # of MurmurHash3's last step
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by bytes per element


def element_hash(bits: Any, index: Any) -> Any:
    """Returns a hash per element. Both arguments: uint32 of any shape, NumPy's or JAX's."""
    uint32 = np.uint32
    # With the index mixed in, two swapped elements change the sum.
    value = bits ^ (index * uint32(INDEX_FACTOR))
    value = (value ^ (value >> uint32(16))) * uint32(HASH_FACTORS[0])
    value = (value ^ (value >> uint32(13))) * uint32(HASH_FACTORS[1])
    return value ^ (value >> uint32(16))


def _on_device(array: jax.Array) -> jax.Array:
    """Returns the checksum of an array as a uint32 scalar; XLA keeps no copy of the array."""
    # The bits, not the values: NaN differs from itself, and 0.0 equals -0.0.
    unsigned = BITS[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    index = jnp.zeros(array.shape, jnp.uint32)
    # The index in the unsharded array, modulo 2**32, as the sum over its axes.
    stride = 1
    for axis in reversed(range(array.ndim)):
        step = np.uint32(stride % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * step
        stride *= array.shape[axis]
    return jnp.sum(element_hash(bits, index), dtype=jnp.uint32)


@jax.jit
def _all_on_device(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_on_device(array) for array in arrays]


def of_tree(tree: Any) -> dict[str, int]:
    """Returns the checksum of each array of a tree, by dotted name. All hosts call it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # One program and one transfer for all arrays.
    sums = jax.device_get(_all_on_device([leaf for _, leaf in leaves]))
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    return {name: int(checksum) for name, checksum in zip(names, sums)}


def of_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check(tree: Any, saved: dict[str, int]) -> None:
    """Raises UserError naming the first array of a tree that does not have its saved checksum."""
    compare(of_tree(tree), saved)


def compare(sums: dict[str, int], saved: dict[str, int]) -> None:
    """Raises UserError naming the first array whose checksum is not the saved one."""
    for name, checksum in sums.items():
        if saved.get(name) != checksum:
            raise UserError(f"{name} does not match its checksum")
