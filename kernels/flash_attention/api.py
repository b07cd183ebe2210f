"""One function for attention; its implementations agree with `reference.py`."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from kernels.flash_attention import cudnn, pallas_tpu, reference, xla
from kernels.tpu import platform

# All have the signature of `reference.attention`.
IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "pallas_tpu": pallas_tpu.attention,
    "cudnn": cudnn.attention,
    "xla": xla.attention,
    "reference": reference.attention,
}


# The platforms of implementations that do not run on all of them. The interpreter runs Pallas
# kernels on a CPU: slowly, but the tests need no TPU.
PLATFORMS = {"pallas_tpu": ("cpu", "tpu"), "cudnn": ("gpu",)}


def refusal(implementation: str, platform: str, dtype, head_dim: int) -> str:
    """Returns the reason why an implementation cannot train on packed sequences, "" if it can.

    The reason is the end of a sentence, such as "it does not run on gpu".
    """
    if platform not in PLATFORMS.get(implementation, (platform,)):
        return f"it does not run on {platform}"
    return cudnn.refusal(dtype, head_dim) if implementation == "cudnn" else ""


def default_implementation(split: bool, dtype, head_dim: int) -> str:
    """Returns the name of the fastest implementation that works here.

    Args:
      split: whether the caller names mesh axes that shard the batch or the heads. On several
        devices a Pallas kernel needs them, because the compiler cannot partition it by itself.
      dtype: dtype of the queries.
      head_dim: entries of a query and of a key.
    """
    # Each platform has one implementation that is faster than `xla`, if it can run at all.
    if platform() == "tpu" and (split or jax.device_count() == 1):
        return "pallas_tpu"
    if platform() == "gpu" and not cudnn.refusal(dtype, head_dim):
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
    """Attends from each query to the keys of its segment at its position or before it.

    out = softmax(q k^T / sqrt(H) + mask) v. Query head n reads key head n // (N / K), as in
    grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245). Logits and softmax are fp32.

    Args:
      q_BTNH, k_BSKH, v_BSKH: queries, keys and values of one dtype. If T = S, queries and keys
        must belong to the same tokens, in an order in which no token needs a later one.
      q_positions_BT, kv_positions_BS: int32 positions in the document.
      q_segments_BT, kv_segments_BS: int32 document numbers; without them each sequence is one
        document.
      implementation: a key of `IMPLEMENTATIONS`; "" takes the fastest that works here.
      batch_axes, head_axes: axes of the mesh in use (`jax.set_mesh`) that shard the batch and the
        heads. With them each device runs the implementation on its shard, as the Pallas kernels
        need. Without them the compiler partitions the work.

    Returns:
      out_BTNH in q's dtype. Tokens of segment 0 (padding) hold finite values without meaning.

    Raises:
      ValueError: for a query head count that K does not divide, or an unknown implementation.
    """
    is_split = bool(batch_axes or head_axes)
    implementation = implementation or default_implementation(
        is_split, q_BTNH.dtype, q_BTNH.shape[-1]
    )
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"no attention implementation {implementation!r}; choose one of {names}")
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    if N % K:
        raise ValueError(f"{N} query heads are not a multiple of {K} key heads")
    function = IMPLEMENTATIONS[implementation]
    # Positional arguments, because `shard_map` takes no others.
    positions = (q_positions_BT, kv_positions_BS)
    arguments = (q_BTNH, k_BSKH, v_BSKH, *positions, q_segments_BT, kv_segments_BS)
    if not is_split:
        return function(*arguments)
    # `shard_map` accepts no None: without segments the function is called with five arguments.
    arrays = [x for x in arguments if x is not None]
    heads = PartitionSpec(batch_axes, None, head_axes, None)
    per_token = PartitionSpec(batch_axes, None)
    specs = tuple(heads if x.ndim == 4 else per_token for x in arrays)
    # The length is not sharded here; `kernels.ring_attention` does that.
    sharded = jax.shard_map(function, in_specs=specs, out_specs=heads, check_vma=False)
    return sharded(*arrays)
