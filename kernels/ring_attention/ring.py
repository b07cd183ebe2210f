"""What goes around the ring, forward and backward, whatever computes a block.

A block is the keys and values of one device. Each hop is asked for before the pass that it overlaps with. Keys of a device
after the queries' own stand one token later in the row than the causal order of local tokens has them; such a block has
passed from the last device to the first, once, and is shifted by one there, so that every pass is plainly causal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Blocks(NamedTuple):
    """A causal pass over rows of one device and its gradients; query t sees keys first_BT[t] to t, perhaps none.

    forward: (q_BNTH, k_BKTH, v_BKTH, first_BT) -> out_BNTH, lse_BN1T in powers of two (very low where a query sees nothing)
    backward: (q, k, v, first_BT, lse_BN1T, delta_BN1T, do_BNTH) -> dq, dk, dv, lse over all keys of the row
    """

    forward: Callable
    backward: Callable


def _hop(arrays: tuple[jax.Array, ...], axes: tuple[str, ...]) -> tuple[jax.Array, ...]:
    """Passes (B, K, T, H) arrays to the next device; the first device shifts what it gets by one token."""
    P = jax.lax.axis_size(axes)
    moved = jax.lax.ppermute(arrays, axes, [(p, (p + 1) % P) for p in range(P)])
    return tuple(jnp.where(jax.lax.axis_index(axes) == 0, jnp.roll(x, 1, axis=2), x) for x in moved)


def _first(starts_BT: jax.Array, step: jax.Array | int, axes: tuple[str, ...]) -> jax.Array:
    """Returns the first key that each query may see in the block that has come `step` hops."""
    p, P = jax.lax.axis_index(axes), jax.lax.axis_size(axes)
    owner = jax.lax.rem(p - step + P, P)
    return (starts_BT - owner + P - 1) // P + (owner > p)


def _merge(out_BNTH, lse_BN1T, part_BNTH, part_lse_BN1T):
    both_BN1T = jnp.logaddexp2(lse_BN1T, part_lse_BN1T)
    share = lambda lse_BN1T: jnp.exp2(lse_BN1T - both_BN1T).swapaxes(2, 3)
    return out_BNTH * share(lse_BN1T) + part_BNTH * share(part_lse_BN1T), both_BN1T


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def ring(q_BNTH, k_BKTH, v_BKTH, starts_BT, axes, blocks):
    """Returns out_BNTH of this device's queries; `starts_BT` is where in the whole row each one's segment begins."""
    return _ring_forward(q_BNTH, k_BKTH, v_BKTH, starts_BT, axes, blocks)[0]


def _ring_forward(q_BNTH, k_BKTH, v_BKTH, starts_BT, axes, blocks):
    def add(total, kv, step):
        return _merge(*total, *blocks.forward(q_BNTH, *kv, _first(starts_BT, step, axes)))

    def body(carry, step):
        kv, total = carry
        following = _hop(kv, axes)
        return (following, add(total, kv, step)), None

    nothing = (
        jnp.zeros(q_BNTH.shape, jnp.float32),
        jnp.full((*q_BNTH.shape[:2], 1, q_BNTH.shape[2]), -jnp.inf),
    )
    steps = jax.lax.axis_size(axes) - 1
    (kv, total), _ = jax.lax.scan(body, ((k_BKTH, v_BKTH), nothing), jnp.arange(steps))
    out_BNTH, lse_BN1T = add(total, kv, steps)
    out_BNTH = out_BNTH.astype(q_BNTH.dtype)
    return out_BNTH, (q_BNTH, k_BKTH, v_BKTH, starts_BT, out_BNTH, lse_BN1T)


def _ring_backward(axes, blocks, residuals, do_BNTH):
    """Keys and values go around again, and their gradients one step behind; all end where they began."""
    q_BNTH, k_BKTH, v_BKTH, starts_BT, out_BNTH, lse_BN1T = residuals
    delta_BN1T = jnp.sum(out_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32), axis=-1)[
        :, :, None
    ]

    def part(kv, step):
        dq, *dkv = blocks.backward(
            q_BNTH, *kv, _first(starts_BT, step, axes), lse_BN1T, delta_BN1T, do_BNTH
        )
        return dq.astype(jnp.float32), tuple(x.astype(jnp.float32) for x in dkv)

    def body(carry, step):
        kv, total, gathered = carry
        following, gathered = _hop(kv, axes), _hop(gathered, axes)
        dq, dkv = part(kv, step)
        return (following, total + dq, tuple(map(jnp.add, gathered, dkv))), None

    kv = k_BKTH, v_BKTH
    carry = _hop(kv, axes), *part(kv, 0)
    (_, dq_BNTH, gathered), _ = jax.lax.scan(body, carry, jnp.arange(1, jax.lax.axis_size(axes)))
    dk_BKTH, dv_BKTH = (jnp.roll(x, -1, axis=2) for x in _hop(gathered, axes))
    gradients = (
        g.astype(x.dtype) for g, x in zip((dq_BNTH, dk_BKTH, dv_BKTH), (q_BNTH, k_BKTH, v_BKTH))
    )
    return *gradients, np.zeros(starts_BT.shape, jax.dtypes.float0)


ring.defvjp(_ring_forward, _ring_backward)
