"""Attention problems that several tests share, and every implementation that has to solve them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from toy import segments

from kernels import ring_attention
from kernels.flash_attention import IMPLEMENTATIONS, cudnn, pallas_tpu, reference
from kernels.flash_attention.block_sizes import BlockSizes


def around_a_ring(q, k, v, q_positions, kv_positions, segments=None, _=None, *, implementation):
    """Attention over two devices, on rows that they divide."""
    mesh, T = (
        jax.make_mesh(
            (2,), ("context",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
        ),
        q.shape[1],
    )

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, T % 2)) + ((0, 0),) * (x.ndim - 2))

    def on_both(x):
        return jax.lax.with_sharding_constraint(
            x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        )

    dealt = [
        None if x is None else on_both(ring_attention.stripe(pad(x), 2))
        for x in (q, k, v, segments)
    ]
    with jax.sharding.use_abstract_mesh(
        mesh.abstract_mesh
    ):  # a test is traced already: too late for `set_mesh`
        out = ring_attention.attention(
            *dealt[:3],
            segments_BT=dealt[3],
            length_axes=("context",),
            implementation=implementation,
        )
    return ring_attention.stripe(out, out.shape[1] // 2)[:, :T]


SMALL = BlockSizes(block=128, queries=256, columns=128, diagonal=128, keys=256)
EVERY = IMPLEMENTATIONS | {
    "cudnn": functools.partial(
        cudnn.attention, implementation="xla"
    ),  # its documents and its padding, without a GPU
    "pallas_tpu": functools.partial(pallas_tpu.attention, sizes=SMALL),  # every path in a short row
}
WHOLE_ROWS = EVERY | {
    f"ring of {name}": functools.partial(around_a_ring, implementation=name)
    for name in ring_attention.IMPLEMENTATIONS
}
UNOPTIMISED = {
    "xla_backend_optimization_level": 0
}  # compiling what the interpreter unrolls takes longer than running it


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile(UNOPTIMISED)(*arguments)


def layout(rng, B, T, documents=True):
    """Returns positions and segments of queries and of keys.

    With `documents` a sequence holds several and padding, else one without segments.
    """
    if not documents:
        positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
        return positions_BT, positions_BT, None, None
    segments_BT, positions_BT = segments(rng, B, T)
    return positions_BT, positions_BT, segments_BT, segments_BT


def problem(seed, B, T, N, K, H, dtype="float32", documents=True):
    """Returns (q, k, v), the output's cotangent (zero in padding), and the layout."""
    rng = np.random.default_rng(seed)
    q, k, v, do = (jnp.asarray(rng.normal(size=(B, T, heads, H)), dtype) for heads in (N, K, K, N))
    rows = layout(rng, B, T, documents)
    return (q, k, v), do * visible(rows).astype(dtype), rows


def visible(rows):
    """Returns where the output has a meaning: not in padding."""
    return np.ones((1, 1, 1, 1), bool) if rows[2] is None else (rows[2] > 0)[:, :, None, None]


def with_gradients(function, qkv, do, rows):
    """Returns the output, zero in padding, and the gradients of q, k and v."""

    def call(*qkv):
        return jnp.where(visible(rows), function(*qkv, *rows), 0)

    out, pullback = jax.vjp(call, *qkv)
    return [out, *pullback(do.astype(out.dtype))]


def solve(function, qkv, do, rows):
    return compiled(lambda qkv, do: with_gradients(function, qkv, do, rows), qkv, do)


def oracle(qkv, do, rows):
    with jax.enable_x64(True):
        return with_gradients(
            reference.attention,
            [jnp.asarray(np.float64(x)) for x in qkv],
            jnp.asarray(np.float64(do)),
            rows,
        )


def relative_error(actual, expected):
    return (
        np.abs(np.float64(actual) - np.float64(expected)).max() / np.abs(np.float64(expected)).max()
    )
