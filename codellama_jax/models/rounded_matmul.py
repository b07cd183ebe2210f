"""The matmul of a weight in bf16 on a CPU, forwards and backwards.

XLA's CPU backend multiplies bf16 operands natively only if the result is fp32; with a bf16 result
it converts the operands to fp32 first, and takes twice as long. The gradient that JAX derives asks
for bf16 results, and for a sum over one dim, which is converted as well. So both are written out:
every matmul has an fp32 result, rounded afterwards, which are the same numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.tpu import platform


def is_faster(dtype: jnp.dtype) -> bool:
    """Returns whether `rounded_matmul` is faster here than `@` for activations of a dtype."""
    return platform() == "cpu" and dtype == jnp.bfloat16


def _fp32_matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


@jax.custom_vjp
def rounded_matmul(x: jax.Array, w_DX: jax.Array) -> jax.Array:
    """Returns x @ w in x's dtype, summed in fp32.

    The gradient of the weight is not rounded to x's dtype, which only adds noise.

    Args:
      x: activations (..., D), of at least two dims.
      w_DX: the weight, which is rounded to x's dtype.
    """
    return _forward(x, w_DX)[0]


def _forward(x: jax.Array, w_DX: jax.Array):
    rounded_DX = w_DX.astype(x.dtype)
    out = _fp32_matmul(x.reshape(-1, x.shape[-1]), rounded_DX).astype(x.dtype)
    # An empty array keeps the dtype of the weight for the backward pass.
    return out.reshape(*x.shape[:-1], -1), (x, rounded_DX, jnp.zeros(0, w_DX.dtype))


def _backward(residuals, dy: jax.Array):
    x, rounded_DX, of_weight = residuals
    dx = _fp32_matmul(dy.reshape(-1, dy.shape[-1]), rounded_DX.T).astype(x.dtype)
    # A sum over two dims, tokens and sequences: over one dim it would be converted to fp32.
    tokens = tuple(range(x.ndim - 1))
    dw_DX = jax.lax.dot_general(
        x, dy, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32
    )
    return dx.reshape(x.shape), dw_DX.astype(of_weight.dtype)


rounded_matmul.defvjp(_forward, _backward)
