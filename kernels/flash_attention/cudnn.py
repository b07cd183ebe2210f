"""Attention for GPU: cuDNN's flash attention through JAX, with a mask between documents.

cuDNN's causal mode skips the keys after the diagonal. The mask, which all heads share, only has to
separate the documents. Sequences of one document need no mask.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import UnsupportedError
from kernels.flash_attention import xla

# cuDNN has no flash attention for fp32.
DTYPES = (jnp.bfloat16, jnp.float16)


def _pad_length(x_BT: jax.Array, tokens: int, value: int = 0) -> jax.Array:
    """Adds `tokens` entries of `value` at the end of the second axis of an array (B, T, ...)."""
    widths = ((0, 0), (0, tokens)) + ((0, 0),) * (x_BT.ndim - 2)
    return jnp.pad(x_BT, widths, constant_values=value)


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    q_positions_BT,
    kv_positions_BS,
    q_segments_BT=None,
    kv_segments_BS=None,
    *,
    implementation="cudnn",
) -> jax.Array:
    """Computes `api.attention` with cuDNN.

    Calls `xla.attention` if T != S, as in decoding: cuDNN's causal mode aligns the first query with
    the first key.

    Args:
      q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS: as
        in `api.attention`.
      implementation: argument of `jax.nn.dot_product_attention`; the tests pass "xla", which runs
        on a CPU.

    Raises:
      UnsupportedError: for a dtype that cuDNN has no attention for.
    """
    if implementation == "cudnn" and q_BTNH.dtype not in DTYPES:
        raise UnsupportedError(
            f"cudnn attention needs bfloat16 or float16, got {q_BTNH.dtype};"
            " use implementation='xla'"
        )
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    if T != S:
        segments = (q_segments_BT, kv_segments_BS)
        return xla.attention(q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, *segments)
    padding, mask_B1TT = 0, None
    if q_segments_BT is not None:
        padding = T % 2  # cuDNN's gradients with a mask need even lengths
        # The padding is segment -1, which no token has, so that no query reads it.
        q_BT = _pad_length(q_segments_BT, padding, -1)
        kv_BS = _pad_length(kv_segments_BS, padding, -1)
        mask_B1TT = (q_BT[:, :, None] == kv_BS[:, None, :])[:, None]
    out_BTNH = jax.nn.dot_product_attention(
        _pad_length(q_BTNH, padding),
        _pad_length(k_BSKH, padding),
        _pad_length(v_BSKH, padding),
        mask=mask_B1TT,
        is_causal=True,
        implementation=implementation,
    )
    return out_BTNH[:, :T]
