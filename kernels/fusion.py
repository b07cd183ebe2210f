"""A barrier to the fusion of operations on a CPU.

XLA's CPU backend fuses what it can into one loop over the elements of a result. In attention, the
loop over the gradients of queries, keys and values then adds padded blocks, reads them transposed,
rotates and joins them, all for one element at a time: 30 ns for each at 1,024 tokens, where the
same operations one after another take 3 (docs/cpu_speed.md).
"""

from __future__ import annotations

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from kernels.tpu import device_count, platform


def materialized(x: jax.Array) -> jax.Array:
    """Returns x, which a CPU writes to memory before it is read, and its gradient likewise.

    Elsewhere, and on several devices, where its gain is not measured, it returns x unchanged. Like
    every `jax.custom_vjp` it has no forward mode (`jax.jvp`).
    """
    return _materialized(x) if platform() == "cpu" and device_count() == 1 else x


@jax.jit
def _identity(x: jax.Array) -> jax.Array:
    # JAX drops a function that returns its argument where `jax.checkpoint` computes it again.
    return jax.lax.optimization_barrier(x)


def _call(x: jax.Array) -> jax.Array:
    # A call that is not inlined has its arguments and its result in memory. The barrier inside it
    # is not enough: XLA removes it before it fuses.
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


@jax.custom_vjp
def _materialized(x: jax.Array) -> jax.Array:
    return _call(x)


def _forward(x: jax.Array) -> tuple[jax.Array, None]:
    return _call(x), None


def _backward(_: None, dy: jax.Array) -> tuple[jax.Array]:
    # The gradient that JAX would derive is a call that XLA may inline.
    return (_call(dy),)


_materialized.defvjp(_forward, _backward)
