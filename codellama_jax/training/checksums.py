"""A checksum per array: the same on any mesh, of a part at a time, on the device and in NumPy.

It is the sum modulo 2**32 of one hash per element, which mixes the element's bits with its index
in the array. A sum needs no order, so that every device adds its own elements. The hash is a
bijection of the bits: any change of one element changes the sum, and any other change goes
unnoticed with a probability of 2**-32.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codellama_jax.errors import UserError

INDEX_FACTOR = 0x9E3779B1
HASH_FACTORS = (0x85EBCA6B, 0xC2B2AE35)  # of MurmurHash3's last step
PART = 2**20  # elements that `of_part` hashes at once
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by bytes per element


def _element_hash(bits: Any, index: Any) -> Any:
    """Returns a hash per element. Both arguments: uint32 of any shape, NumPy's or JAX's."""
    uint32 = np.uint32
    value = bits ^ (index * uint32(INDEX_FACTOR))
    value = (value ^ (value >> uint32(16))) * uint32(HASH_FACTORS[0])
    value = (value ^ (value >> uint32(13))) * uint32(HASH_FACTORS[1])
    return value ^ (value >> uint32(16))


def of_part(part: np.ndarray, start: int = 0) -> int:
    """Returns the checksum of a part of an array; that of the array is the sum modulo 2**32.

    Args:
      part: consecutive elements of the array in C order, of 1, 2 or 4 bytes each.
      start: the index in the flattened array of the first of them.
    """
    flat = np.ascontiguousarray(part).reshape(-1).view(BITS[part.dtype.itemsize])
    total = 0
    for begin in range(0, flat.size, PART):
        bits = flat[begin : begin + PART].astype(np.uint32)
        index = (np.arange(bits.size, dtype=np.uint64) + start + begin).astype(np.uint32)
        total += int(_element_hash(bits, index).sum(dtype=np.uint64))
    return total % 2**32


def _on_device(array: jax.Array) -> jax.Array:
    """Returns the checksum of an array as a uint32 scalar; XLA keeps no copy of the array."""
    unsigned = BITS[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    index = jnp.zeros(array.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(array.ndim)):
        step = np.uint32(stride % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * step
        stride *= array.shape[axis]
    return jnp.sum(_element_hash(bits, index), dtype=jnp.uint32)


@functools.partial(jax.jit, static_argnames="dtypes")
def _all_on_device(arrays: list[jax.Array], dtypes: tuple[str, ...]) -> list[jax.Array]:
    return [_on_device(array.astype(dtype)) for array, dtype in zip(arrays, dtypes)]


def of_tree(tree: Any, dtypes: dict[str, str] | None = None) -> dict[str, list]:
    """Returns [dtype, checksum] per array of a tree, by dotted name. All hosts call it.

    Args:
      tree: arrays on the devices.
      dtypes: the dtype of each array as it was stored, where the array was widened on load.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    stored = [(dtypes or {}).get(name, str(leaf.dtype)) for name, (_, leaf) in zip(names, leaves)]
    sums = jax.device_get(_all_on_device([leaf for _, leaf in leaves], tuple(stored)))
    return {name: [dtype, int(sum_)] for name, dtype, sum_ in zip(names, stored, sums)}


def of_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check(tree: Any, saved: dict[str, list]) -> None:
    """Raises UserError naming the first array that is not the one that was saved.

    Args:
      tree: arrays on the devices.
      saved: what `of_tree` returned for the arrays that were saved.
    """
    dtypes = {name: dtype for name, (dtype, _) in saved.items()}
    for name, found in of_tree(tree, dtypes).items():
        if saved.get(name) != found:
            raise UserError(f"{name} does not match its checksum")
