"""Flash attention for TPU in Pallas: its gradient, padding, and the document bounds its two passes work from."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.flash_attention.block_sizes import block_length
from kernels.flash_attention.pallas_tpu_backward import backward
from kernels.flash_attention.pallas_tpu_forward import forward


def first_keys(segments_BT: jax.Array) -> jax.Array:
    """Returns int32 (B, T): where the run of equal segment ids that holds each token begins."""
    T = segments_BT.shape[1]
    begins = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return jax.lax.cummax(jnp.where(begins, jnp.arange(T, dtype=jnp.int32), 0), axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q_BNTH, k_BKTH, v_BKTH, first_BT, block, interpret):
    return forward(q_BNTH, k_BKTH, v_BKTH, first_BT, block=block, stretch=q_BNTH.shape[2], interpret=interpret)[0]


def _attention_forward(q_BNTH, k_BKTH, v_BKTH, first_BT, block, interpret):
    out_BNTH, lse_BN1T = forward(q_BNTH, k_BKTH, v_BKTH, first_BT, block=block, stretch=q_BNTH.shape[2], interpret=interpret)
    return out_BNTH, (q_BNTH, k_BKTH, v_BKTH, first_BT, out_BNTH, lse_BN1T)


def _attention_backward(block, interpret, residuals, do_BNTH):
    *inputs, first_BT, out_BNTH, lse_BN1T = residuals
    delta_BN1T = jnp.sum(out_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32), axis=-1)[:, :, None]
    gradients = backward(*inputs, first_BT, lse_BN1T, delta_BN1T, do_BNTH, block=block, interpret=interpret)
    return *gradients, np.zeros(first_BT.shape, jax.dtypes.float0)


_attention.defvjp(_attention_forward, _attention_backward)
