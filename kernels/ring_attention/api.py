"""Attention over rows that are split over devices: keys and values go around, queries stay.

The tokens are dealt to the P devices one at a time: device p holds tokens p, P + p, 2 P + p ... of a row (Brandon et al. 2023,
Striped Attention). So every device has the same work at every step, whatever documents the row holds, and every step is
a causal pass in the order of the device's own tokens: the flash attention kernel as it is, which skips what causality and
documents leave empty.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels.flash_attention.blocked import first_keys
from kernels.ring_attention import pallas_tpu, xla
from kernels.ring_attention.ring import ring
from kernels.tpu import platform

IMPLEMENTATIONS = {
    "pallas_tpu": pallas_tpu.blocks,
    "xla": xla.blocks,
}  # of what a device computes on its own


def stripe(x_BT: jax.Array, shards: int) -> jax.Array:
    """Puts a row (B, T, ...) in the order in which `shards` equal parts of it hold every `shards`-th token.

    `stripe(x_BT, T // shards)` puts it back.
    """
    B, T, *rest = x_BT.shape
    return x_BT.reshape(B, T // shards, shards, *rest).swapaxes(1, 2).reshape(x_BT.shape)


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    segments_BT: jax.Array | None = None,
    length_axes: tuple[str, ...],
    batch_axes: tuple[str, ...] = (),
    head_axes: tuple[str, ...] = (),
    implementation: str = "",
) -> jax.Array:
    """Attends from each query to the keys of its own segment up to itself, as `flash_attention.attention` does.

    All arrays are in the order of `stripe(x, shards)`, `shards` the number of devices along `length_axes`. A segment is a run of
    equal ids in the row as it was before; without segments the whole row is one. K divides N.

    Args:
      length_axes, batch_axes, head_axes: axes of the mesh in use (`jax.set_mesh`) that split length, batch and heads.

    Returns:
      out_BTNH, in the same order. Rows of segment 0 (padding) hold finite values without meaning.

    Raises:
      ValueError: for an unknown implementation.
    """
    implementation = implementation or ("pallas_tpu" if platform() == "tpu" else "xla")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"no ring attention implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    heads, rows = (
        PartitionSpec(batch_axes, length_axes, head_axes, None),
        PartitionSpec(batch_axes, length_axes),
    )
    segments_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32) if segments_BT is None else segments_BT
    local = functools.partial(_local, axes=length_axes, make_blocks=IMPLEMENTATIONS[implementation])
    return jax.shard_map(
        local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def _starts(segments_BT: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Returns, for each token of this device, the place in the whole row where its segment begins."""
    B = segments_BT.shape[0]
    whole_BTP = jax.lax.all_gather(segments_BT, axes, axis=2)
    starts_BTP = first_keys(whole_BTP.reshape(B, -1)).reshape(whole_BTP.shape)
    return jax.lax.dynamic_index_in_dim(
        starts_BTP, jax.lax.axis_index(axes), axis=2, keepdims=False
    )


def _local(q_BTNH, k_BTKH, v_BTKH, segments_BT, axes, make_blocks):
    T = q_BTNH.shape[1]
    blocks, padding = make_blocks(T)
    starts_BT = jnp.pad(_starts(segments_BT, axes), ((0, 0), (0, padding)), mode="edge")
    heads_first = [
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
        for x in (q_BTNH, k_BTKH, v_BTKH)
    ]
    return ring(*heads_first, starts_BT, axes, blocks)[:, :, :T].swapaxes(1, 2)
