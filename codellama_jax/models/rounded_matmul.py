"""The matmul of a weight in bf16 on a CPU, forwards and backwards.

XLA's CPU backend multiplies bf16 operands natively only if the result is fp32; with a bf16 result
it converts the operands to fp32 first, and takes twice as long. The gradient that JAX derives asks
for bf16 results, and for a sum over one dim, which is converted as well. So both are written out:
every matmul has an fp32 result, rounded afterwards, which are the same numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels.tpu import platform

RESULT = "rounded_matmul"  # the name by which a rematerialization policy keeps the result
_keeps_result = jax.checkpoint_policies.save_only_these_names(RESULT)
_keeps_dot = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims


def is_faster(dtype: jnp.dtype) -> bool:
    """Returns whether `rounded_matmul` is faster here than `@` for activations of a dtype."""
    return platform() == "cpu" and dtype == jnp.bfloat16


def _fp32_matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def keeps_matmul(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """Returns whether the result of a primitive is kept: the policy for matmuls with weights.

    That of `rounded_matmul` is kept rounded: its sum in fp32 would take twice the memory.
    """
    if _keeps_result(primitive, *inputs, **params):
        return True
    # Where `rounded_matmul` is used, no other matmul of a layer has such a result.
    is_sum = params.get("preferred_element_type") == jnp.float32
    if is_sum and is_faster(inputs[0].dtype):
        return False
    return _keeps_dot(primitive, *inputs, **params)


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
    out = checkpoint_name(out.reshape(*x.shape[:-1], -1), RESULT)
    return out, (x, rounded_DX, jnp.zeros(0, w_DX.dtype))


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
