"""One function for attention; its implementations agree with `reference.py`."""

from __future__ import annotations

import jax

from kernels.flash_attention import pallas_tpu, reference, xla

IMPLEMENTATIONS = {"pallas_tpu": pallas_tpu.attention, "xla": xla.attention, "reference": reference.attention}


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
) -> jax.Array:
    """Attends from each query to the keys of its own segment at its position or before it.

    Query head n reads key head n // (N / K). With T = S the rows are in order: row t never needs a key after row t.
    Without segments the whole row is one document. Logits and softmax are fp32; the result has q's dtype.

    Returns:
      out_BTNH. Rows of segment 0 (padding) hold finite values without meaning.

    Raises:
      ValueError: for a head count that K does not divide, or an unknown implementation.
    """
    implementation = implementation or "xla"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"no attention implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}")
    if q_BTNH.shape[2] % k_BSKH.shape[2]:
        raise ValueError(f"{q_BTNH.shape[2]} query heads do not divide over {k_BSKH.shape[2]} key heads")
    return IMPLEMENTATIONS[implementation](q_BTNH, k_BSKH, v_BSKH, q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS)
