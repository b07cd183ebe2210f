"""What the TPU kernels share: register width, products, vector memory, and where they are interpreted."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

LANES = 128
MASKED = (
    -1e30
)  # a score that counts nothing; finite, so that a masked score less a maximum is never NaN
TRANSPOSED = (((1,), (1,)), ((), ()))
CONTRACT_ROWS = (((0,), (0,)), ((), ()))


def matmul(x: jax.Array, y: jax.Array, dimensions=(((1,), (0,)), ((), ()))) -> jax.Array:
    """Returns x @ y in fp32 over the dimensions given; fp32 inputs keep their precision."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def fold(x_RC: jax.Array) -> jax.Array:
    """Adds up groups of lanes: x_RL."""
    return functools.reduce(
        jnp.add, [x_RC[:, i : i + LANES] for i in range(0, x_RC.shape[1], LANES)]
    )


def spread(x_RL: jax.Array, width: int) -> jax.Array:
    """Spreads a value that is the same in all lanes over `width` columns."""
    return jnp.tile(x_RL, (1, -(-width // LANES)))[:, :width]


def platform() -> str:
    """Returns where the program will run: the platform of the mesh in use, which need not be at hand, or else of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return "tpu" if device and device.device_kind.startswith("TPU") else jax.default_backend()


def device_count() -> int:
    """Returns how many devices the program will run on: those of the mesh in use, or else of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size


def vmem_bytes() -> int:
    """Returns the vector memory of the chip at hand, or of the smallest recent one (v5p, tpu7x) when there is none."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return 64 << 20


def anywhere(function, *arrays: jax.Array, interpret):
    """Runs the compiled kernel where the program is lowered for a TPU and the interpreter elsewhere, unless told."""
    if interpret is not None:
        return function(*arrays, interpret=interpret)
    return lax.platform_dependent(
        *arrays,
        tpu=functools.partial(function, interpret=False),
        default=functools.partial(function, interpret=True),
    )
