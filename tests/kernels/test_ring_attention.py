"""Ring attention on eight CPU devices against attention on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import segments

from kernels import flash_attention, ring_attention

NAMES = ("q_segments_BT", "kv_segments_BS")


def on_ring(context, implementation="", **changes):
    """Returns (q, k, v, segments) -> out over a mesh whose devices along `context` split the length; the rest split batch and heads."""
    mesh = jax.make_mesh((8 // context, context), ("fsdp", "context"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = {"length_axes": ("context",), "batch_axes": ("fsdp",), "implementation": implementation} | changes

    def run(q, k, v, segment_ids):
        T = q.shape[1]
        dealt = [ring_attention.stripe(x, context) for x in (q, k, v)]
        segment_ids = None if segment_ids is None else ring_attention.stripe(segment_ids, context)
        return ring_attention.stripe(ring_attention.attention(*dealt, segments_BT=segment_ids, **split), T // context)

    return mesh, run


def alone(q, k, v, segment_ids):
    positions = jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2])
    layout = dict.fromkeys(("q_positions_BT", "kv_positions_BS"), positions) | dict.fromkeys(NAMES, segment_ids)
    return flash_attention.attention(q, k, v, **layout, implementation="reference")


def problem(T, N, K, H=8, B=8, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(B, T, heads, H)).astype(np.float32) for heads in (N, K, K, N)], segments(rng, B, T)[0]


def with_gradients(function, arrays, segment_ids):
    *qkv, g = arrays
    real = jnp.asarray(segment_ids > 0)[..., None, None] if segment_ids is not None else True
    out, pullback = jax.vjp(lambda *qkv: jnp.where(real, function(*qkv, segment_ids), 0), *qkv)
    return [out, *pullback(jnp.asarray(g))]


@pytest.mark.parametrize("context", [2, 4, 8])
@pytest.mark.parametrize("T, N, K, packed", [(64, 4, 2, True), (40, 2, 2, False)])
def test_ring_is_attention_on_one_device(context, T, N, K, packed):
    arrays, segment_ids = problem(T, N, K)
    segment_ids = segment_ids if packed else None
    mesh, run = on_ring(context)
    with jax.set_mesh(mesh):
        here = jax.jit(lambda arrays: with_gradients(run, arrays, segment_ids))(arrays)
    for a, b in zip(here, with_gradients(alone, arrays, segment_ids)):
        np.testing.assert_allclose(a, b, atol=1e-5)
