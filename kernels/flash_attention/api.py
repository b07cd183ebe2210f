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
    """What an implementation can do: run on these platforms, compute in these dtypes (any if none), keep documents apart."""

    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    dtypes: tuple = ()
    segments: bool = True


LIMITS = {
    "pallas_tpu": Limits(platforms=("cpu", "tpu")),
    "cudnn": Limits(platforms=("gpu",), dtypes=cudnn.DTYPES),
}


def refusal(implementation: str, platform: str, dtype) -> str:
    """Returns why an implementation cannot train on packed rows, "" if it can. On a CPU the interpreter runs Pallas kernels."""
    limits = LIMITS.get(implementation, Limits())
    if platform not in limits.platforms:
        return f"it does not run on {platform}"
    if limits.dtypes and jnp.dtype(dtype) not in limits.dtypes:
        return f"it does not compute in {dtype}"
    return "" if limits.segments else "it does not keep the documents of a packed row apart"


def default_implementation(split: bool, dtype) -> str:
    """Returns the fastest implementation that works here. The compiler cannot split a Pallas kernel over devices by itself."""
    if platform() == "tpu" and (split or jax.device_count() == 1):
        return "pallas_tpu"
    return "cudnn" if platform() == "gpu" and dtype in cudnn.DTYPES else "xla"


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

    Query head n reads key head n // (N / K). With T = S the rows are in order: row t never needs a key after row t.
    Without segments the whole row is one document. Logits and softmax are fp32; the result has q's dtype.

    Args:
      batch_axes, head_axes: axes of the mesh in use (`jax.set_mesh`) that split the batch and the heads. With them each
        device runs the implementation on its own part, as the Pallas kernels need; without, the compiler splits the work.

    Returns:
      out_BTNH. Rows of segment 0 (padding) hold finite values without meaning.

    Raises:
      ValueError: for a head count that K does not divide, or an unknown implementation.
    """
    split = bool(batch_axes or head_axes)
    implementation = implementation or default_implementation(split, q_BTNH.dtype)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"no attention implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    if q_BTNH.shape[2] % k_BSKH.shape[2]:
        raise ValueError(
            f"{q_BTNH.shape[2]} query heads do not divide over {k_BSKH.shape[2]} key heads"
        )
    arguments = (
        q_BTNH,
        k_BSKH,
        v_BSKH,
        q_positions_BT,
        kv_positions_BS,
        q_segments_BT,
        kv_segments_BS,
    )
    if not split:
        return IMPLEMENTATIONS[implementation](*arguments)
    heads, rows = PartitionSpec(batch_axes, None, head_axes, None), PartitionSpec(batch_axes, None)
    given = [x for x in arguments if x is not None]
    specs = tuple(heads if x.ndim == 4 else rows for x in given)
    return jax.shard_map(
        IMPLEMENTATIONS[implementation], in_specs=specs, out_specs=heads, check_vma=False
    )(*given)
