"""One function for attention in decoding; its implementations agree with `reference.py`.

Dims: M = K B key heads of all rows, head by head, so that rows of one head are neighbours; G query heads share a key head;
S slots of the cache, slot s of a row holds position s; H head dim.
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


def decode_attention(
    q_MGH: jax.Array,
    k_MSH: jax.Array,
    v_MSH: jax.Array,
    lengths_B: jax.Array,
    *,
    k_scale_MS: jax.Array | None = None,
    v_scale_MS: jax.Array | None = None,
    implementation: str = "",
    head_axes: tuple[str, ...] = (),
) -> jax.Array:
    """Attends from one query a head to the first `lengths_B` (one at least) slots of its row. Softmax in fp32.

    Args:
      k_scale_MS, v_scale_MS: with a cache in int8, what its keys and values are multiplied by (`quantize`), fp32.
      head_axes: axes of the mesh in use (`jax.set_mesh`) that split the key heads. With them each device runs the
        implementation on its own heads, as the Pallas kernel needs; without, the compiler splits the work.

    Returns:
      out_MGH in q's dtype.

    Raises:
      ValueError: for an unknown implementation, or M that is no multiple of B.
    """
    on_tpu = platform() == "tpu" and (
        head_axes or device_count() == 1
    )  # the compiler cannot split a Pallas kernel by itself
    implementation = implementation or ("pallas_tpu" if on_tpu else "xla")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"no decode attention implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    M, B = len(k_MSH), len(lengths_B)
    if M % B:
        raise ValueError(f"{M} key heads of all rows are no multiple of {B} rows")
    arguments = (q_MGH, k_MSH, v_MSH, jnp.tile(lengths_B, M // B), k_scale_MS, v_scale_MS)
    if not head_axes:
        return IMPLEMENTATIONS[implementation](*arguments)
    given = [x for x in arguments if x is not None]
    specs = tuple(PartitionSpec(head_axes) for _ in given)
    return jax.shard_map(
        IMPLEMENTATIONS[implementation], in_specs=specs, out_specs=specs[0], check_vma=False
    )(*given)


def quantize(x_MSH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x in int8 and scale_MS, the largest magnitude of each slot and head over 127: x is about int8 times scale."""
    scale_MS = jnp.maximum(jnp.abs(x_MSH.astype(jnp.float32)).max(axis=-1), 1e-30) / 127
    return jnp.round(x_MSH.astype(jnp.float32) / scale_MS[..., None]).astype(jnp.int8), scale_MS
