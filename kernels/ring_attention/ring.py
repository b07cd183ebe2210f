"""The rotation of keys and values around the ring, forward and backward.

A block is the keys and values of one device. Each hop to the next device is issued before the pass
that it overlaps with.

Striping puts token t P + p on device p. At equal t, the token of a later device is after that of an
earlier one, so query t sees keys up to t of its device and of earlier ones, but only up to t - 1 of
later devices. A plain causal mask would allow one token too many there. A block of a later
device has passed from the last device to the first exactly once, and is shifted by one token there.
So every pass is plain causal attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Blocks(NamedTuple):
    """A causal pass over one device's queries and a block of keys, and its gradients.

    Query t sees keys first_BT[t] to t of the block, perhaps none.

    Args:
      forward: (q_BNTH, k_BKTH, v_BKTH, first_BT) -> out_BNTH and lse_BN1T, the log-sum-exp in
        powers of two, which is very low if a query sees no key.
      backward: (q_BNTH, k_BKTH, v_BKTH, first_BT, lse_BN1T, delta_BN1T, do_BNTH) -> dq_BNTH,
        dk_BKTH, dv_BKTH, where the log-sum-exp is over all keys of the sequence.
    """

    forward: Callable
    backward: Callable


def _hop(arrays: tuple[jax.Array, ...], axes: tuple[str, ...]) -> tuple[jax.Array, ...]:
    """Returns the previous device's (B, K, T, H) arrays; the first device shifts them by one token.

    The shift moves the last token to the front, where `_first_keys` hides it from every query.
    """
    devices = jax.lax.axis_size(axes)
    # Device p sends to p + 1, and the last one to the first.
    pairs = [(device, (device + 1) % devices) for device in range(devices)]
    received = jax.lax.ppermute(arrays, axes, pairs)
    is_first = jax.lax.axis_index(axes) == 0
    return tuple(jnp.where(is_first, jnp.roll(x, 1, axis=2), x) for x in received)


def _first_keys(starts_BT: jax.Array, step: jax.Array | int, axes: tuple[str, ...]) -> jax.Array:
    """Returns int32 first_BT, the first key that each query may see in a block.

    Args:
      starts_BT: index in the full sequence where each query's segment starts.
      step: hops that the block has made.
      axes: axes of the mesh around which the blocks rotate.
    """
    # Key t of device `owner` is token t P + owner of the sequence: the first one that is not before
    # the start is (start - owner) / P rounded up. A shifted block holds it one place later.
    p, P = jax.lax.axis_index(axes), jax.lax.axis_size(axes)
    owner = jax.lax.rem(p - step + P, P)
    return (starts_BT - owner + P - 1) // P + (owner > p)


def _merge(out_BNTH, lse_BN1T, part_BNTH, part_lse_BN1T):
    """Returns out_BNTH and lse_BN1T over the keys of two passes.

    Each out is an average over its keys with weights that sum to 1. Its share of the total is
    2^(lse - total), where total = log2(2^lse + 2^part_lse).
    """
    total_BN1T = jnp.logaddexp2(lse_BN1T, part_lse_BN1T)
    share_BNT1 = jnp.exp2(lse_BN1T - total_BN1T).swapaxes(2, 3)
    part_share_BNT1 = jnp.exp2(part_lse_BN1T - total_BN1T).swapaxes(2, 3)
    return out_BNTH * share_BNT1 + part_BNTH * part_share_BNT1, total_BN1T


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def ring(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    starts_BT: jax.Array,
    axes: tuple[str, ...],
    blocks: Blocks,
) -> jax.Array:
    """Returns out_BNTH of this device's queries in q's dtype.

    Args:
      q_BNTH, k_BKTH, v_BKTH: this device's tokens, heads before the length.
      starts_BT: int32 index in the full sequence where each query's segment starts.
      axes: axes of the mesh around which keys and values rotate.
      blocks: the passes of a device.
    """
    return _ring_forward(q_BNTH, k_BKTH, v_BKTH, starts_BT, axes, blocks)[0]


def _ring_forward(q_BNTH, k_BKTH, v_BKTH, starts_BT, axes, blocks):
    def add_block(total, kv, step):
        """Attends to a block that made `step` hops and merges the result into the total."""
        first_BT = _first_keys(starts_BT, step, axes)
        return _merge(*total, *blocks.forward(q_BNTH, *kv, first_BT))

    # One step of the ring. The hop does not depend on the pass, so the compiler sends the block
    # while the device computes with it.
    def body(carry, step):
        kv, total = carry
        next_kv = _hop(kv, axes)
        return (next_kv, add_block(total, kv, step)), None

    B, N, T, _ = q_BNTH.shape
    # A log-sum-exp of minus infinity gives the empty total a share of 0. The total is fp32, because
    # it is rescaled at every step.
    empty = jnp.zeros(q_BNTH.shape, jnp.float32), jnp.full((B, N, 1, T), -jnp.inf)
    hops = jax.lax.axis_size(axes) - 1
    (kv, total), _ = jax.lax.scan(body, ((k_BKTH, v_BKTH), empty), jnp.arange(hops))
    out_BNTH, lse_BN1T = add_block(total, kv, hops)  # the last block needs no further hop
    out_BNTH = out_BNTH.astype(q_BNTH.dtype)
    return out_BNTH, (q_BNTH, k_BKTH, v_BKTH, starts_BT, out_BNTH, lse_BN1T)


def _ring_backward(axes, blocks, residuals, do_BNTH):
    """Returns the gradients of `ring`'s arrays.

    Keys and values rotate again. Their gradients follow one step behind and collect the part of
    every device, so that after P hops they are complete and back on their device.
    """
    q_BNTH, k_BKTH, v_BKTH, starts_BT, out_BNTH, lse_BN1T = residuals
    out_do_BNTH = out_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32)
    delta_BN1T = jnp.sum(out_do_BNTH, axis=-1)[:, :, None]

    def block_gradients(kv, step):
        first_BT = _first_keys(starts_BT, step, axes)
        gradients = blocks.backward(q_BNTH, *kv, first_BT, lse_BN1T, delta_BN1T, do_BNTH)
        dq, dk, dv = (x.astype(jnp.float32) for x in gradients)
        return dq, (dk, dv)

    def body(carry, step):
        kv, dq_total, dkv_total = carry
        next_kv = _hop(kv, axes)  # overlaps with the pass below, as in the forward pass
        dkv_total = _hop(dkv_total, axes)  # the gradients follow their keys and values
        dq, dkv = block_gradients(kv, step)
        return (next_kv, dq_total + dq, tuple(map(jnp.add, dkv_total, dkv))), None

    kv = k_BKTH, v_BKTH
    carry = _hop(kv, axes), *block_gradients(kv, 0)
    steps = jnp.arange(1, jax.lax.axis_size(axes))
    (_, dq_BNTH, dkv_total), _ = jax.lax.scan(body, carry, steps)
    # One more hop brings the gradients back to their device. By then every block has passed from
    # the last device to the first once; rolling back undoes the shift of that hop.
    dk_BKTH, dv_BKTH = (jnp.roll(x, -1, axis=2) for x in _hop(dkv_total, axes))
    dq_BNTH = dq_BNTH.astype(q_BNTH.dtype)
    dk_BKTH, dv_BKTH = dk_BKTH.astype(k_BKTH.dtype), dv_BKTH.astype(v_BKTH.dtype)
    return dq_BNTH, dk_BKTH, dv_BKTH, np.zeros(starts_BT.shape, jax.dtypes.float0)


ring.defvjp(_ring_forward, _ring_backward)
