"""Matmuls of int8 weights for any backend, and the quantization of their columns.

XLA multiplies int8 by int8 with the matrix units of TPUs and GPUs, and with YNNPACK on CPUs. There
it does so only for a row-major matrix times a matrix of two columns or more. Everything else is
converted to wider types first, which takes longer than the matmul.

Dims: X outputs, D inputs, N columns, one per token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from kernels.tpu import platform

LARGEST = 127  # of int8, symmetric: -128 is not used
# A digit after the first resolves half a unit of the digit before it into -127 to 127.
BASE = 2 * LARGEST
DIGITS = 3  # 127 x 254^2 steps, 23 bits: the mantissa of fp32
# Up to this many columns the digits of `multiply` take less time than converting the weights.
MOST_DIGIT_COLUMNS = 8


def scales_of(largest: jax.Array) -> jax.Array:
    """Returns the fp32 scales with which magnitudes up to `largest` become int8; 1 for zeros.

    A scale is at least the smallest normal number: processors flush smaller ones to zero, and the
    values would be divided by it.
    """
    smallest = jnp.finfo(jnp.float32).tiny
    return jnp.where(largest == 0, 1.0, jnp.maximum(largest / LARGEST, smallest))


def quantize_columns(x_DN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns int8 columns q_DN and their fp32 scales_N, so that x is about q x scale.

    The scale of a column is its largest magnitude / 127. A column of zeros has scale 1.
    """
    x_DN = x_DN.astype(jnp.float32)
    scales_N = scales_of(jnp.max(jnp.abs(x_DN), axis=0))
    return jnp.round(x_DN / scales_N[None]).astype(jnp.int8), scales_N


def split_columns(x_DN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns columns as int8 digits q_DM, M = 3 N, and the fp32 scales_M of the digits.

    x is the sum of its three digits, each times its scale, with an error of at most the column's
    largest magnitude x 6.2e-8. The first N columns are the first digits, and so on.
    """
    x_DN = x_DN.astype(jnp.float32)
    scales_N = scales_of(jnp.max(jnp.abs(x_DN), axis=0))
    rest_DN = x_DN / scales_N[None]
    digits, scales = [], []
    for number in range(DIGITS):
        digit_DN = jnp.round(rest_DN)
        digits.append(digit_DN.astype(jnp.int8))
        scales.append(scales_N / BASE**number)
        # The rest of rounding is at most half a unit; times 254 it fills -127 to 127 again.
        rest_DN = (rest_DN - digit_DN) * BASE
    return jnp.concatenate(digits, axis=1), jnp.concatenate(scales)


def join_columns(out_XM: jax.Array) -> jax.Array:
    """Returns out_XN, the sum of the matmuls with the digits of `split_columns`, scaled."""
    *rest, M = out_XM.shape
    return jnp.sum(out_XM.reshape(*rest, DIGITS, M // DIGITS), axis=-2)


def int_matmul(q_XD: jax.Array, x_DN: jax.Array, batch: int = 0) -> jax.Array:
    """Returns the exact int32 matmul out_XN of int8 arrays.

    Args:
      q_XD: int8 (*batch, *X, D).
      x_DN: int8 (*batch, D, *N).
      batch: the number of leading batch dims of both.
    """
    is_column = x_DN.ndim == batch + 2 and x_DN.shape[-1] == 1
    if is_column and platform() == "cpu":
        # YNNPACK does not take a single column.
        x_DN = jnp.concatenate([x_DN, jnp.zeros_like(x_DN)], axis=-1)
    # int32 sums: 127 x 127 fits 130,000 times before they could overflow.
    contracted, batched = ((q_XD.ndim - 1,), (batch,)), (tuple(range(batch)),) * 2
    out_XN = lax.dot_general(q_XD, x_DN, (contracted, batched), preferred_element_type=jnp.int32)
    return out_XN[..., :1] if is_column else out_XN


def has_digit_columns(x_DN: jax.Array) -> bool:
    """Returns whether float columns are split into digits here, for an int8 matmul."""
    return platform() == "cpu" and x_DN.ndim == 2 and x_DN.shape[1] <= MOST_DIGIT_COLUMNS


def multiply(q_XD: jax.Array, x_DN: jax.Array) -> jax.Array:
    """Returns the fp32 matmul out_XN of int8 weights and float columns, as precise as x's dtype.

    Few columns on a CPU are split into digits, because converting the weights would take longer.

    Args:
      q_XD: int8 (*X, D).
      x_DN: (D, *N).
    """
    if has_digit_columns(x_DN):
        digits_DM, scales_M = split_columns(x_DN)
        out_XM = int_matmul(q_XD, digits_DM).astype(jnp.float32)
        return join_columns(scale_columns(out_XM, scales_M))
    # Integers up to 127 are exact in bf16 as well, so that the conversion rounds nothing.
    return jnp.tensordot(q_XD.astype(x_DN.dtype), x_DN, 1, preferred_element_type=jnp.float32)


def rows_multiply(x_ND: jax.Array, q_DX: jax.Array) -> jax.Array:
    """Returns the fp32 matmul out_NX of float rows and an int8 matrix, like `multiply`."""
    # The same split, transposed: here the digits are rows and the weights columns.
    if has_digit_columns(x_ND.T):
        digits_DM, scales_M = split_columns(x_ND.T)
        out_MX = int_matmul(digits_DM.T, q_DX).astype(jnp.float32)
        return join_columns(scale_rows(out_MX, scales_M).T).T
    return jnp.matmul(x_ND, q_DX.astype(x_ND.dtype), preferred_element_type=jnp.float32)


def scale_columns(out_XN: jax.Array, scales_N: jax.Array) -> jax.Array:
    """Multiplies every column by its scale."""
    return out_XN * scales_N.reshape((1,) * (out_XN.ndim - scales_N.ndim) + scales_N.shape)


def scale_rows(out_XN: jax.Array, scales_X: jax.Array) -> jax.Array:
    """Multiplies every row by its scale, in fp32."""
    scales_X = scales_X.astype(jnp.float32)
    return out_XN * scales_X.reshape(scales_X.shape + (1,) * (out_XN.ndim - scales_X.ndim))
