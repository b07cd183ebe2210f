"""One function for attention; its implementations agree with `reference.py`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels.flash_attention import cudnn, pallas_tpu, reference, xla
from kernels.tpu import platform

IMPLEMENTATIONS = {
    "pallas_tpu": pallas_tpu.attention,
    "cudnn": cudnn.attention,
    "xla": xla.attention,
    "reference": reference.attention,
}


class Limits(NamedTuple):
    """Platforms that an implementation runs on, and dtypes it computes in (any if empty)."""

    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    dtypes: tuple = ()


# On a CPU the interpreter runs Pallas kernels.
LIMITS = {
    "pallas_tpu": Limits(platforms=("cpu", "tpu")),
    "cudnn": Limits(platforms=("gpu",), dtypes=cudnn.DTYPES),
}


def refusal(implementation: str, platform: str, dtype) -> str:
    """Returns why an implementation cannot train on packed sequences; "" if it can."""
    limits = LIMITS.get(implementation, Limits())
    if platform not in limits.platforms:
        return f"it does not run on {platform}"
    if limits.dtypes and jnp.dtype(dtype) not in limits.dtypes:
        return f"it does not compute in {dtype}"
    return ""


def default_implementation(split: bool, dtype) -> str:
    """Returns the fastest implementation that works here.

    The compiler cannot partition a Pallas kernel over devices by itself: on several devices it
    needs `split`, the axes that shard the batch or the heads.
    """
    if platform() == "tpu" and (split or jax.device_count() == 1):
        return "pallas_tpu"
    if platform() == "gpu" and dtype in cudnn.DTYPES:
        return "cudnn"
    return "xla"


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    q_positions_BT: jax.Array,
    kv_positions_BS: jax.Array,
    q_segments_BT: jax.Array | None = None,
    kv_segments_BS: jax.Array | None = None,
    implementation: str = "",
    batch_axes: tuple[str, ...] = (),
    head_axes: tuple[str, ...] = (),
) -> jax.Array:
    """Attends from each query to the keys of its own segment at its position or before it.

    Query head n reads key head n // (N / K). Logits and softmax are fp32.

    Args:
      q_BTNH, k_BSKH, v_BSKH: queries, keys and values of one dtype. If T = S, token t never needs
        a key after token t.
      q_positions_BT, kv_positions_BS: positions in the document, int32.
      q_segments_BT, kv_segments_BS: document numbers, int32; without them each sequence is one
        document.
      implementation: a key of `IMPLEMENTATIONS`; "" takes the fastest that works here.
      batch_axes, head_axes: axes of the mesh in use (`jax.set_mesh`) that shard the batch and the
        heads. With them each device runs the implementation on its own shard, as the Pallas
        kernels need; without them the compiler partitions the work.

    Returns:
      out_BTNH in q's dtype. Tokens of segment 0 (padding) hold finite values without meaning.

    Raises:
      ValueError: for a query head count that K does not divide, or an unknown implementation.
    """
    split = bool(batch_axes or head_axes)
    implementation = implementation or default_implementation(split, q_BTNH.dtype)
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"no attention implementation {implementation!r}; choose one of {names}")
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    if N % K:
        raise ValueError(f"{N} query heads are not a multiple of {K} key heads")
    function = IMPLEMENTATIONS[implementation]
    positions = (q_positions_BT, kv_positions_BS)
    arguments = (q_BTNH, k_BSKH, v_BSKH, *positions, q_segments_BT, kv_segments_BS)
    if not split:
        return function(*arguments)
    # shard_map takes no None: without segments the function is called with five arguments.
    arrays = [x for x in arguments if x is not None]
    heads = PartitionSpec(batch_axes, None, head_axes, None)
    per_token = PartitionSpec(batch_axes, None)
    specs = tuple(heads if x.ndim == 4 else per_token for x in arrays)
    sharded = jax.shard_map(function, in_specs=specs, out_specs=heads, check_vma=False)
    return sharded(*arrays)
