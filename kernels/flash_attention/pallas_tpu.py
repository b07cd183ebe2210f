"""Flash attention for TPU in Pallas: its gradient, padding, and the document bounds that its two passes work from."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.flash_attention import block_sizes, xla
from kernels.flash_attention.blocked import first_keys
from kernels.flash_attention.pallas_tpu_backward import backward
from kernels.flash_attention.pallas_tpu_forward import forward
from kernels.tpu import anywhere


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(q_BNTH, k_BKTH, v_BKTH, first_BT, sizes, interpret):
    """Returns out_BNTH for rows whose length is a multiple of `sizes.queries`; `first_BT` as `forward` takes it."""
    return _attend_forward(q_BNTH, k_BKTH, v_BKTH, first_BT, sizes, interpret)[0]


def _attend_forward(q_BNTH, k_BKTH, v_BKTH, first_BT, sizes, interpret):
    inputs = q_BNTH, k_BKTH, v_BKTH, first_BT
    out_BNTH, lse_BN1T = anywhere(
        functools.partial(forward, sizes=sizes), *inputs, interpret=interpret
    )
    return out_BNTH, (*inputs, out_BNTH, lse_BN1T)


def _attend_backward(sizes, interpret, residuals, do_BNTH):
    *inputs, first_BT, out_BNTH, lse_BN1T = residuals
    delta_BN1T = jnp.sum(out_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32), axis=-1)[
        :, :, None
    ]
    arrays = (*inputs, first_BT, lse_BN1T, delta_BN1T, do_BNTH)
    gradients = anywhere(functools.partial(backward, sizes=sizes), *arrays, interpret=interpret)
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
    """See `api.attention`. Positions rise by one inside each run of equal segment ids, so the order of the row decides.

    Queries that are not the row of the keys (a step of decoding) go through `xla.attention`.

    Args:
      sizes: block sizes; chosen from T and the chip when None.
      interpret: `pallas_call`'s; None compiles for TPU and interprets elsewhere.

    Raises:
      ValueError: for what `forward` and `backward` refuse, or `sizes` that do not divide the padded row.
    """
    B, T = q_BTNH.shape[:2]
    if k_BSKH.shape[1] != T:
        return xla.attention(
            q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS
        )
    sizes = sizes or block_sizes.choose(T)
    padding = -T % sizes.queries
    if (T + padding) % sizes.keys or sizes.keys % sizes.queries or sizes.queries % sizes.block:
        raise ValueError(f"{sizes} do not divide a row of {T + padding} tokens")
    segments_BT = jnp.zeros((B, T), jnp.int32) if q_segments_BT is None else q_segments_BT
    first_BT = first_keys(jnp.pad(segments_BT, ((0, 0), (0, padding)), constant_values=-1))
    heads_first = [
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
        for x in (q_BTNH, k_BSKH, v_BSKH)
    ]
    return attend(*heads_first, first_BT, sizes, interpret)[:, :, :T].swapaxes(1, 2)
