"""Flash attention for TPU in Pallas: the differentiable function around its two kernels.

The kernels are in `pallas_tpu_forward.py` and `pallas_tpu_backward.py`. They take sequences that
are padded to full blocks, and document boundaries as one number per query: its first visible key.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.flash_attention import block_sizes, xla
from kernels.flash_attention.blocked import first_keys
from kernels.flash_attention.pallas_tpu_backward import backward
from kernels.flash_attention.pallas_tpu_forward import forward
from kernels.tpu import run_kernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    first_BT: jax.Array,
    sizes: block_sizes.BlockSizes,
    interpret: bool | None,
) -> jax.Array:
    """Returns out_BNTH in q's dtype, for sequences that full blocks divide.

    Args:
      q_BNTH, k_BKTH, v_BKTH: heads before the length, all of one dtype.
      first_BT: int32, first key that each query may see.
      sizes: block sizes; `queries`, `keys` and, if T is longer, `segment` divide T.
      interpret: as `tpu.run_kernel` takes it.
    """
    return _attend_forward(q_BNTH, k_BKTH, v_BKTH, first_BT, sizes, interpret)[0]


def _attend_forward(q_BNTH, k_BKTH, v_BKTH, first_BT, sizes, interpret):
    inputs = q_BNTH, k_BKTH, v_BKTH, first_BT
    kernel = functools.partial(forward, sizes=sizes)
    out_BNTH, lse_BN1T = run_kernel(kernel, *inputs, interpret=interpret)
    return out_BNTH, (*inputs, out_BNTH, lse_BN1T)


def _attend_backward(sizes, interpret, residuals, do_BNTH):
    q_BNTH, k_BKTH, v_BKTH, first_BT, out_BNTH, lse_BN1T = residuals
    # delta, the mean of dP under P that the gradient of the softmax subtracts, equals the sum of
    # out * do over the head dim (Dao 2023, arXiv:2307.08691, algorithm 2). It is fp32, because the
    # difference dP - delta loses the digits that both have in common.
    out_do_BNTH = out_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32)
    delta_BN1T = jnp.sum(out_do_BNTH, axis=-1)[:, :, None]
    arrays = (q_BNTH, k_BKTH, v_BKTH, first_BT, lse_BN1T, delta_BN1T, do_BNTH)
    kernel = functools.partial(backward, sizes=sizes)
    gradients = run_kernel(kernel, *arrays, interpret=interpret)
    # float0 is JAX's type for the gradient of an integer.
    return *gradients, np.zeros(first_BT.shape, jax.dtypes.float0)


attend.defvjp(_attend_forward, _attend_backward)


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    q_positions_BT,
    kv_positions_BS,
    q_segments_BT=None,
    kv_segments_BS=None,
    *,
    sizes=None,
    interpret=None,
) -> jax.Array:
    """Computes `api.attention` with the Pallas kernels.

    The kernels ignore the positions: within a segment they rise by one per token, so the order of
    the tokens decides which keys are visible. Calls `xla.attention` if T != S, as in decoding.

    Args:
      q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS: as
        in `api.attention`.
      sizes: block sizes; None chooses them from T and the chip.
      interpret: as `tpu.run_kernel` takes it; None compiles for TPU and interprets elsewhere.

    Raises:
      UnsupportedError: for shapes that `forward` or `backward` do not support.
      ValueError: for `sizes` that do not divide the padded length.
    """
    B, T = q_BTNH.shape[:2]
    if k_BSKH.shape[1] != T:
        segments = (q_segments_BT, kv_segments_BS)
        return xla.attention(q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, *segments)
    sizes = sizes or block_sizes.choose(T, q_BTNH.shape[-1], q_BTNH.dtype.itemsize)
    padding = sizes.padding(T)
    is_nested = sizes.keys % sizes.queries == 0 and sizes.queries % sizes.block == 0
    is_nested = is_nested and sizes.segment % sizes.queries == 0
    if (T + padding) % sizes.keys or not is_nested:
        raise ValueError(f"{sizes} do not divide a sequence of {T + padding} tokens")
    segments_BT = jnp.zeros((B, T), jnp.int32) if q_segments_BT is None else q_segments_BT
    # Padding is the separate segment -1, which no token has. It comes after all tokens, so that no
    # token sees it; its outputs are dropped.
    first_BT = first_keys(jnp.pad(segments_BT, ((0, 0), (0, padding)), constant_values=-1))
    heads_first = [_heads_first(x, padding) for x in (q_BTNH, k_BSKH, v_BSKH)]
    return attend(*heads_first, first_BT, sizes, interpret)[:, :, :T].swapaxes(1, 2)


def _heads_first(x_BTNH: jax.Array, padding: int) -> jax.Array:
    """Returns x_BNTH with `padding` zero tokens at the end of each head.

    With heads first, a block of one head is contiguous in HBM and is fetched in one transfer.
    """
    return jnp.pad(x_BTNH.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
