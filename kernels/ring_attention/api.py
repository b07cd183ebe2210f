"""Attention over sequences that are sharded over devices.

Keys and values rotate around a ring of devices and queries stay (Liu et al. 2023, Ring Attention,
arXiv:2310.01889). The tokens are striped over the P devices: device p holds tokens p, P + p,
2 P + p ... of a sequence (Brandon et al. 2023, Striped Attention, arXiv:2311.09431). With
contiguous shards the devices with early tokens would wait for those with late tokens, which see
more keys. With stripes every device has the same work at every step, whatever documents the
sequence holds.

Every step is a causal pass in the order of the device's tokens. It is the flash attention kernel
unchanged, which skips the blocks that causality and document boundaries leave empty.
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

# Functions from the tokens per device, the head dim and the bytes per element to the passes that a
# device computes, and the padding.
IMPLEMENTATIONS = {"pallas_tpu": pallas_tpu.blocks, "xla": xla.blocks}


def stripe(x_BT: jax.Array, shards: int) -> jax.Array:
    """Returns (B, T, ...) reordered: each of `shards` equal parts holds every `shards`-th token.

    `stripe(x_BT, T // shards)` restores the order.
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
    """Attends from each query to the keys of its segment up to itself.

    Args:
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values in the order of `stripe(x, shards)`, where
        `shards` is the number of devices along `length_axes`. K divides N.
      segments_BT: int32, in the same order. A segment is a run of equal ids in the sequence before
        striping; without segments each sequence is one document.
      length_axes, batch_axes, head_axes: axes of the mesh in use (`jax.set_mesh`) that shard the
        length, the batch and the heads.
      implementation: a key of `IMPLEMENTATIONS`; "" takes the fastest that works here.

    Returns:
      out_BTNH in the same order and in q's dtype. Tokens of segment 0 (padding) hold finite values
      without meaning.

    Raises:
      ValueError: for an unknown implementation.
    """
    implementation = implementation or ("pallas_tpu" if platform() == "tpu" else "xla")
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"no ring attention {implementation!r}; choose one of {names}")
    heads = PartitionSpec(batch_axes, length_axes, head_axes, None)
    per_token = PartitionSpec(batch_axes, length_axes)
    if segments_BT is None:
        segments_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)
    # Each device runs the ring on its tokens. The gathering of segments and `ppermute` inside it
    # are the only communication.
    local = functools.partial(_local, axes=length_axes, make_blocks=IMPLEMENTATIONS[implementation])
    in_specs = (heads, heads, heads, per_token)
    sharded = jax.shard_map(local, in_specs=in_specs, out_specs=heads, check_vma=False)
    return sharded(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def _segment_starts(segments_BT: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Returns int32 starts_BT: for each token of this device, the index where its segment starts.

    Indices count in the full sequence, before striping.
    """
    # Gathering all int32 ids costs little beside keys and values. With the device axis P last,
    # flattening (T, P) restores the order before striping, because token t P + p is on device p.
    B = segments_BT.shape[0]
    all_BTP = jax.lax.all_gather(segments_BT, axes, axis=2)
    starts_BTP = first_keys(all_BTP.reshape(B, -1)).reshape(all_BTP.shape)
    device = jax.lax.axis_index(axes)
    return jax.lax.dynamic_index_in_dim(starts_BTP, device, axis=2, keepdims=False)


def _local(q_BTNH, k_BTKH, v_BTKH, segments_BT, axes, make_blocks):
    """Runs the ring on this device's tokens, padded to full blocks."""
    _, T, _, H = q_BTNH.shape
    blocks, padding = make_blocks(T, H, q_BTNH.dtype.itemsize)
    starts_BT = _segment_starts(segments_BT, axes)
    # Padding repeats the last token's start, so that the starts still never fall. It comes after
    # all tokens of this device, so no query sees it.
    starts_BT = jnp.pad(starts_BT, ((0, 0), (0, padding)), mode="edge")
    heads_first = []
    # With heads first, a block of one head is contiguous in memory.
    for x_BTNH in (q_BTNH, k_BTKH, v_BTKH):
        x_BNTH = x_BTNH.swapaxes(1, 2)
        heads_first.append(jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, padding), (0, 0))))
    return ring(*heads_first, starts_BT, axes, blocks)[:, :, :T].swapaxes(1, 2)
