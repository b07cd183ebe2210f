"""Attention for GPU: cuDNN's flash attention, through JAX, with documents as a mask.

A row in order lets cuDNN skip what lies above the diagonal; the mask, which all heads share, then only has to keep documents
apart. Rows that are one document have no mask at all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import Refused
from kernels.flash_attention import xla

DTYPES = (jnp.bfloat16, jnp.float16)


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
    """See `api.attention`. Queries that are not the row of the keys (a step of decoding) go through `xla.attention`.

    Args:
      implementation: of `jax.nn.dot_product_attention`.

    Raises:
      Refused: for a dtype that cuDNN has no attention for.
    """
    if implementation == "cudnn" and q_BTNH.dtype not in DTYPES:
        raise Refused(
            f"cudnn attention needs bfloat16 or float16, got {q_BTNH.dtype}; use implementation='xla'"
        )
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    if T != S:
        return xla.attention(
            q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS
        )
    odd = (
        T % 2 if q_segments_BT is not None else 0
    )  # cuDNN's gradients under a mask need even lengths
    pad = lambda x, value=0: jnp.pad(
        x, ((0, 0), (0, odd)) + ((0, 0),) * (x.ndim - 2), constant_values=value
    )
    mask_B1TT = None
    if q_segments_BT is not None:
        q_BT, kv_BS = pad(q_segments_BT, -1), pad(kv_segments_BS, -1)
        mask_B1TT = (q_BT[:, :, None] == kv_BS[:, None, :])[:, None]
    out_BTNH = jax.nn.dot_product_attention(
        pad(q_BTNH),
        pad(k_BSKH),
        pad(v_BSKH),
        mask=mask_B1TT,
        is_causal=True,
        implementation=implementation,
    )
    return out_BTNH[:, :T]
