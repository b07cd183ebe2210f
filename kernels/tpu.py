"""Helpers that the TPU kernels share: register width, matmuls, VMEM, and the interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from kernels.static.chips import CHIPS

LANES = 128  # columns of a vector register
# Dimension numbers of `lax.dot_general`. The matrix units contract any of these pairs of axes
# directly, so that a kernel never transposes an operand in VMEM.
PLAIN = (((1,), (0,)), ((), ()))  # x @ y
TRANSPOSED = (((1,), (1,)), ((), ()))  # x @ y.T
CONTRACT_ROWS = (((0,), (0,)), ((), ()))  # x.T @ y


def matmul(x: jax.Array, y: jax.Array, dimensions=PLAIN) -> jax.Array:
    """Returns the matmul of two 2-D arrays in fp32, contracted over `dimensions`.

    bf16 inputs take one pass of the matrix units, which accumulate in fp32. fp32 inputs take the
    several bf16 passes that keep their precision.
    """
    is_exact = x.dtype == jnp.float32
    precision = lax.Precision.HIGHEST if is_exact else lax.Precision.DEFAULT
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
    """Returns x_RL, the sum over groups of 128 columns, one partial sum per lane.

    Adding full registers costs one instruction each. Adding the lanes of a register to each other
    is slow, so a kernel does that only once, when all columns have been added.
    """
    groups = [x_RC[:, i : i + LANES] for i in range(0, x_RC.shape[1], LANES)]
    return functools.reduce(jnp.add, groups)


def broadcast_lanes(x_RL: jax.Array, width: int) -> jax.Array:
    """Returns (R, width) columns that repeat a value which is equal in all lanes of x_RL."""
    # Taking lanes or repeating registers moves no data between lanes.
    if width <= LANES:
        return x_RL[:, :width]
    return jnp.tile(x_RL, (1, ceil_div(width, LANES)))[:, :width]


def platform() -> str:
    """Returns the platform that the program will run on: `tpu`, `gpu` or `cpu`.

    That is the platform of the mesh in use, which may be one that this process only compiles for.
    Without a mesh it is the backend of this process.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device and device.device_kind.startswith("TPU"):
        return "tpu"
    return jax.default_backend()


def device_count() -> int:
    """Returns the number of devices of the mesh in use, or of this process without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size


def vmem_bytes() -> int:
    """Returns the VMEM per core in bytes: of this process's TPU, or of a v5p if it has none.

    Of the chips after v4, v5p and TPU7x have the least, so blocks chosen for it fit all of them.
    """
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return CHIPS["v5p"].vmem_bytes


def run_kernel(function: Callable[..., Any], *arrays: jax.Array, interpret: bool | None) -> Any:
    """Runs the compiled kernel when lowered for a TPU, and the interpreter elsewhere.

    Args:
      function: the kernel, called as function(*arrays, interpret=...).
      *arrays: its inputs.
      interpret: True or False overrides the choice; None leaves it to the platform that the
        program is lowered for.
    """
    if interpret is not None:
        return function(*arrays, interpret=interpret)
    # The choice is made when the program is lowered, not when it is traced: a program that is
    # traced on a CPU may be compiled for a TPU.
    compiled = functools.partial(function, interpret=False)
    interpreted = functools.partial(function, interpret=True)
    return lax.platform_dependent(*arrays, tpu=compiled, default=interpreted)
