"""Flash attention for TPU in Pallas: its gradient, its padding, and the document boundaries."""

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
def attend(q_BNTH, k_BKTH, v_BKTH, first_BT, sizes, interpret):
    """Returns out_BNTH for sequences whose length is a multiple of `sizes.queries`.

    Args:
      q_BNTH, k_BKTH, v_BKTH: heads before the length, all of one dtype.
      first_BT: int32, the first key that each query may see.
      sizes: the `BlockSizes`.
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
    # The softmax gradient subtracts, per query, the mean of dp under p: the sum of out * do.
    out_do_BNTH = out_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32)
    delta_BN1T = jnp.sum(out_do_BNTH, axis=-1)[:, :, None]
    arrays = (q_BNTH, k_BKTH, v_BKTH, first_BT, lse_BN1T, delta_BN1T, do_BNTH)
    kernel = functools.partial(backward, sizes=sizes)
    gradients = run_kernel(kernel, *arrays, interpret=interpret)
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
    """See `api.attention`. Positions rise by one within a segment, so the token order decides.

    Calls `xla.attention` where the queries are not the tokens of the keys, as in decoding.

    Args:
      q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS: as
        in `api.attention`.
      sizes: block sizes; None chooses them from T and the chip.
      interpret: as `tpu.run_kernel` takes it; None compiles for TPU and interprets elsewhere.

    Raises:
      ValueError: for shapes that `forward` or `backward` refuse, or `sizes` that do not divide the
        padded length.
    """
    B, T = q_BTNH.shape[:2]
    if k_BSKH.shape[1] != T:
        segments = (q_segments_BT, kv_segments_BS)
        return xla.attention(q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, *segments)
    sizes = sizes or block_sizes.choose(T)
    padding = -T % sizes.queries
    nested = sizes.keys % sizes.queries == 0 and sizes.queries % sizes.block == 0
    if (T + padding) % sizes.keys or not nested:
        raise ValueError(f"{sizes} do not divide a sequence of {T + padding} tokens")
    segments_BT = jnp.zeros((B, T), jnp.int32) if q_segments_BT is None else q_segments_BT
    # Padding is a segment of its own (-1), so that no real query sees it.
    first_BT = first_keys(jnp.pad(segments_BT, ((0, 0), (0, padding)), constant_values=-1))
    heads_first = [_heads_first(x, padding) for x in (q_BTNH, k_BSKH, v_BSKH)]
    return attend(*heads_first, first_BT, sizes, interpret)[:, :, :T].swapaxes(1, 2)


def _heads_first(x_BTNH: jax.Array, padding: int) -> jax.Array:
    """Returns x_BNTH with `padding` zero tokens at the end."""
    return jnp.pad(x_BTNH.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
