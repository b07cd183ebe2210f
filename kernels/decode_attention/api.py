"""Attention in decoding, with one choice of implementation; all agree with `reference.py`.

Shapes: M = K B, the key heads of all sequences, head by head, so that the sequences of one head are
neighbours; G query heads share a key head; S slots of the cache, where slot s of a sequence holds
position s; H head dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels.decode_attention import pallas_tpu, reference, xla
from kernels.tpu import device_count, platform

IMPLEMENTATIONS = {
    "pallas_tpu": pallas_tpu.decode_attention,
    "xla": xla.decode_attention,
    "reference": reference.decode_attention,
}


def default_implementation(split: bool) -> str:
    """Returns the name of the fastest implementation that works here.

    `split` is whether the caller names mesh axes that shard the heads. On several devices a Pallas
    kernel needs them, because the compiler cannot partition it by itself.
    """
    if platform() == "tpu" and (split or device_count() == 1):
        return "pallas_tpu"
    return "xla"


def decode_attention(
    q_MGH: jax.Array,
    k_MSH: jax.Array,
    v_MSH: jax.Array,
    lengths_B: jax.Array,
    *,
    scales_MS: tuple[jax.Array, jax.Array] | None = None,
    implementation: str = "",
    head_axes: tuple[str, ...] = (),
) -> jax.Array:
    """Attends from one query per head to the first `lengths_B` slots of its sequence.

    out = softmax(q k^T / sqrt(H)) v over these slots; the softmax is fp32.

    Args:
      q_MGH, k_MSH, v_MSH: queries, and the cache of keys and values, of one dtype. With
        `scales_MS` the cache is int8.
      lengths_B: int32, at least 1: filled slots of each sequence.
      scales_MS: fp32, by which each slot's key and value are multiplied.
      implementation: a key of `IMPLEMENTATIONS`; "" takes the fastest that works here.
      head_axes: axes of the mesh in use (`jax.set_mesh`) that shard the key heads. With them each
        device runs the implementation on its heads, as the Pallas kernel needs. Without them the
        compiler partitions the work.

    Returns:
      out_MGH in q's dtype.

    Raises:
      ValueError: for an unknown implementation, if B does not divide M, or if the cache is int8
        without scales or the other way round.
    """
    implementation = implementation or default_implementation(bool(head_axes))
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"no decode attention {implementation!r}; choose one of {names}")
    M, B = len(k_MSH), len(lengths_B)
    if M % B:
        raise ValueError(f"{M} key heads of all sequences are not a multiple of {B} sequences")
    if (scales_MS is not None) != (k_MSH.dtype == v_MSH.dtype == jnp.int8):
        raise ValueError(f"a cache of {k_MSH.dtype} and {v_MSH.dtype}: only int8 has scales_MS")
    function = IMPLEMENTATIONS[implementation]
    # The sequences of one key head are neighbours, so the lengths repeat once per key head.
    arrays = (q_MGH, k_MSH, v_MSH, jnp.tile(lengths_B, M // B), *(scales_MS or ()))
    if not head_axes:
        return function(*arrays)
    # The first axis of all arrays is the key heads, so each device gets complete heads.
    spec = PartitionSpec(head_axes)
    in_specs = (spec,) * len(arrays)
    sharded = jax.shard_map(function, in_specs=in_specs, out_specs=spec, check_vma=False)
    return sharded(*arrays)
