"""Ring attention on eight CPU devices against attention on one.

test_attention.py tests that documents do not leak.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import SMALL, UNOPTIMISED, oracle, problem, relative_error, with_gradients
from jax.sharding import PartitionSpec as P

from kernels import ring_attention
from kernels.flash_attention import block_sizes, reference
from kernels.ring_attention import pallas_tpu
from kernels.ring_attention.ring import ring

AXES = ("fsdp", "context", "tensor")


def on_mesh(sizes, function, *arguments):
    """Compiles for a mesh of these sizes along AXES; arguments may be shapes only."""
    devices = jax.devices()[: np.prod(sizes)]
    with jax.set_mesh(
        jax.make_mesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    ):
        return jax.jit(function).lower(*arguments).compile(UNOPTIMISED)


def around(context, implementation="xla"):
    """Returns a function like `reference.attention`, for sequences on `context` devices."""

    def attention(q, k, v, q_positions, kv_positions, segments, _):
        T = q.shape[1]
        q, k, v, segments = (
            None if x is None else ring_attention.stripe(jnp.asarray(x), context)
            for x in (q, k, v, segments)
        )
        split = {
            "length_axes": ("context",),
            "batch_axes": ("fsdp",),
            "head_axes": ("tensor",),
            "implementation": implementation,
        }
        return ring_attention.stripe(
            ring_attention.attention(q, k, v, segments_BT=segments, **split), T // context
        )

    return attention


def check(sizes, given, implementation="xla"):
    qkv, do, rows = given

    def solve(qkv, do):
        return with_gradients(around(sizes[1], implementation), qkv, do, rows)

    for here, alone in zip(
        on_mesh(sizes, solve, qkv, do)(qkv, do), with_gradients(reference.attention, *given)
    ):
        np.testing.assert_allclose(here, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "documents"),
    [((2, 2, 2), True), ((1, 4, 2), True), ((1, 8, 1), True), ((2, 4, 1), False)],
)
def test_ring_is_attention_on_one_device(sizes, documents):
    check(sizes, problem(0, 2, 72, 4, 2, 16, documents=documents))


@pytest.mark.parametrize("segment", [1024, 256])
def test_ring_of_kernels_is_attention_on_one_device(monkeypatch, segment):
    # Three blocks per device in one segment, or four blocks in two.
    small = block_sizes.BlockSizes(
        block=128, queries=128, columns=128, diagonal=128, keys=128, segment=segment
    )
    monkeypatch.setattr(block_sizes, "choose", lambda *_: small)
    check((1, 2, 1), problem(1, 1, 600, 2, 1, 64), "pallas_tpu")


@pytest.mark.parametrize("implementation", ring_attention.IMPLEMENTATIONS)
def test_bfloat16_keeps_its_precision_around_the_ring(implementation, monkeypatch):
    monkeypatch.setattr(block_sizes, "choose", lambda *_: SMALL)
    # The interpreter unrolls the ring, and a long one takes long to compile.
    context = 8 if implementation == "xla" else 2
    qkv, do, rows = problem(2, 1, 512, 2, 1, 64, "bfloat16")

    def solve(qkv, do):
        return with_gradients(around(context, implementation), qkv, do, rows)

    for here, alone in zip(
        on_mesh((1, context, 1), solve, qkv, do)(qkv, do), oracle(qkv, do, rows)
    ):
        assert here.dtype == jnp.bfloat16 and relative_error(here, alone) <= 1e-2


def test_rows_come_back_in_order():
    x_BT = np.arange(2 * 24 * 3).reshape(2, 24, 3)
    striped = ring_attention.stripe(x_BT, 4)
    np.testing.assert_array_equal(striped[:, 6:12], x_BT[:, 1::4])
    np.testing.assert_array_equal(ring_attention.stripe(striped, 6), x_BT)


def temporaries(context, length=8192):
    """Returns the temporary bytes of one of `context` devices for all gradients of a sequence."""
    x = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    split = {"length_axes": ("context",), "implementation": "xla"}

    def loss(q, k, v, ids):
        return jnp.sum(ring_attention.attention(q, k, v, segments_BT=ids, **split) ** 2)

    compiled = on_mesh((1, context, 1), jax.grad(loss, argnums=(0, 1, 2)), x, x, x, ids)
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_a_device_falls_with_the_ring():
    two, four, eight = map(temporaries, (2, 4, 8))
    assert four < two / 1.5 and eight < four / 1.5


def test_refuses_what_it_does_not_know():
    x = jnp.zeros((1, 8, 1, 8))
    with pytest.raises(
        ValueError, match="no ring attention 'reference'; choose one of pallas_tpu, xla"
    ):
        ring_attention.attention(x, x, x, length_axes=("context",), implementation="reference")


def of_a_tpu(length, head_dim):
    """Traces the gradients of a device's quarter of a sequence, as a TPU would run them."""
    blocks, _ = ring_attention.IMPLEMENTATIONS["pallas_tpu"](length // 4, head_dim, 2)
    mesh = jax.sharding.AbstractMesh((4,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    q, starts = (
        jax.ShapeDtypeStruct((1, 1, length, head_dim), jnp.bfloat16),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
    )

    def local(q, starts):
        return ring(q, q, q, starts, ("context",), blocks)

    split = {
        "mesh": mesh,
        "in_specs": (P(None, None, "context"), P(None, "context")),
        "out_specs": P(None, None, "context"),
    }
    sharded = jax.shard_map(local, check_vma=False, **split)
    jax.eval_shape(
        jax.grad(lambda q, starts: sharded(q, starts).astype(jnp.float32).sum()), q, starts
    )


@pytest.mark.parametrize(
    ("length", "head_dim", "message"),
    [
        (1 << 17, 2048, "the gradients of 2048 tokens of head dim 2048 take .* MiB of VMEM"),
        (1 << 12, 192, "a head dim up to 128 or a multiple of it, got 192"),
    ],
)
def test_refuses_what_fits_no_chip(monkeypatch, length, head_dim, message):
    monkeypatch.setattr(pallas_tpu, "platform", lambda: "tpu")
    with pytest.raises(ValueError, match=message):
        of_a_tpu(length, head_dim)
