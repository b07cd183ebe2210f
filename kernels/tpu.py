"""Helpers that the TPU kernels share: register width, matmuls, VMEM, and the interpreter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # columns of a vector register
# The score of a masked position. It is finite, so that a masked score minus a maximum is never NaN.
MASKED = -1e30
# Dimension numbers of lax.dot_general: x @ y.T and x.T @ y.
TRANSPOSED = (((1,), (1,)), ((), ()))
CONTRACT_ROWS = (((0,), (0,)), ((), ()))


def matmul(x: jax.Array, y: jax.Array, dimensions=(((1,), (0,)), ((), ()))) -> jax.Array:
    """Returns x @ y in fp32 over the given dimensions; fp32 inputs keep their precision."""
    exact = x.dtype == jnp.float32
    precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
    return lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def ceil_div(number: int, divisor: int) -> int:
    """Returns number / divisor rounded up."""
    return -(-number // divisor)


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `number`."""
    return ceil_div(number, multiple) * multiple


def sum_lane_groups(x_RC: jax.Array) -> jax.Array:
    """Returns x_RL, the sum over groups of 128 columns; the sum over lanes is left for later."""
    groups = [x_RC[:, i : i + LANES] for i in range(0, x_RC.shape[1], LANES)]
    return functools.reduce(jnp.add, groups)


def broadcast_lanes(x_RL: jax.Array, width: int) -> jax.Array:
    """Repeats a value that is equal in all lanes over `width` columns."""
    if width <= LANES:
        return x_RL[:, :width]
    return jnp.tile(x_RL, (1, ceil_div(width, LANES)))[:, :width]


def platform() -> str:
    """Returns the platform that the program will run on.

    That is the platform of the mesh in use, which may be one that this process only compiles for,
    or else the backend of this process.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device and device.device_kind.startswith("TPU"):
        return "tpu"
    return jax.default_backend()


def device_count() -> int:
    """Returns how many devices the program will run on: the mesh in use, or else this process."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size


def vmem_bytes() -> int:
    """Returns the VMEM of this process's TPU, or of the smallest recent one if it has none."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return 64 << 20  # v5p and tpu7x


def run_kernel(function, *arrays: jax.Array, interpret):
    """Runs the compiled kernel when lowered for a TPU, and the interpreter elsewhere.

    `interpret` True or False overrides that choice.
    """
    if interpret is not None:
        return function(*arrays, interpret=interpret)
    compiled = functools.partial(function, interpret=False)
    interpreted = functools.partial(function, interpret=True)
    return lax.platform_dependent(*arrays, tpu=compiled, default=interpreted)
