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
# Head dims up to the largest one on any GPU, and on one of compute capability 9.0 (Hopper) or
# later: the limits that JAX checks before it calls cuDNN.
MAX_HEAD_DIM, MAX_HEAD_DIM_HOPPER = 128, 256
HEAD_DIM_MULTIPLE = 8


def refusal(dtype, head_dim: int) -> str:
    """Returns the reason why cuDNN has no attention for a dtype and a head dim, "" if it has one.

    The reason is the end of a sentence, such as "it does not compute in float32".
    """
    if jnp.dtype(dtype) not in DTYPES:
        return f"it does not compute in {jnp.dtype(dtype)}"
    # Hosts have GPUs of one kind. AMD's report a name in place of two numbers.
    capability = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
    is_hopper = capability.isdecimal() and int(capability) >= 9
    most = MAX_HEAD_DIM_HOPPER if is_hopper else MAX_HEAD_DIM
    if head_dim > most or head_dim % HEAD_DIM_MULTIPLE:
        allowed = f"multiples of {HEAD_DIM_MULTIPLE} up to {most}"
        return f"it has no head dim {head_dim}, only {allowed}"
    return ""


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
      UnsupportedError: for a dtype or head dim that cuDNN has no attention for.
    """
    reason = refusal(q_BTNH.dtype, q_BTNH.shape[-1])
    if implementation == "cudnn" and reason:
        raise UnsupportedError(f"cudnn attention: {reason}; use implementation='xla'")
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
