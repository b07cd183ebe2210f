"""The TPU kernels beyond the properties in `test_attention.py`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    SMALL,
    UNOPTIMISED,
    compiled,
    oracle,
    problem,
    relative_error,
    visible,
    with_gradients,
)
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # races_found has no public name
from jax.experimental.pallas import tpu as pltpu

from kernels.flash_attention import attention, block_sizes, pallas_tpu

CHECKED = pltpu.InterpretParams(
    detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
)


@pytest.mark.parametrize(("T", "N", "H", "documents"), [(300, 2, 64, True), (257, 1, 128, False)])
def test_no_race_and_no_read_out_of_bounds(T, N, H, documents):
    given = problem(0, 1, T, N, 1, H, documents=documents)
    sizes = block_sizes.BlockSizes(block=128, queries=128, columns=128, diagonal=128, keys=128)
    kernel = functools.partial(pallas_tpu.attention, sizes=sizes, interpret=CHECKED)

    def run(qkv, do):
        return with_gradients(kernel, qkv, do, given[2])

    for actual, expected in zip(compiled(run, *given[:2]), oracle(*given)):
        assert relative_error(actual, expected) <= 2e-5
    assert not interpret_pallas_call.races.races_found


def test_split_over_batch_and_heads_equals_whole():
    inputs, _, rows = problem(1, 4, 40, 4, 2, 64)
    names = ("q_positions_BT", "kv_positions_BS", "q_segments_BT", "kv_segments_BS")
    given = dict(zip(names, map(jnp.asarray, rows)))
    whole = attention(*inputs, **given, implementation="reference")
    axes = {"batch_axes": ("fsdp",), "head_axes": ("tensor",)}
    call = functools.partial(attention, **given, implementation="pallas_tpu", **axes)
    auto = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=auto)):
        parts = jax.jit(call).lower(*inputs).compile(UNOPTIMISED)(*inputs)
    np.testing.assert_allclose(
        np.where(visible(rows), parts, 0), np.where(visible(rows), whole, 0), atol=2e-6
    )


@pytest.mark.parametrize("length", [1, 128, 129, 1000, 1025, 4096, 5000, 16384, 100_000])
@pytest.mark.parametrize("vmem", [16 << 20, 64 << 20])
def test_blocks_tile_the_padded_row(length, vmem):
    sizes = block_sizes.choose(length, vmem)
    padded = -(-length // sizes.queries) * sizes.queries
    assert (
        padded % sizes.keys == 0
        and sizes.keys % sizes.queries == 0
        and sizes.queries % sizes.block == 0
    )
    assert padded - length < sizes.queries <= 2048 and sizes.block % block_sizes.LANES == 0


def test_refuses_blocks_that_leave_a_rest():
    with pytest.raises(ValueError, match=r"queries=256.* do not divide a sequence of 768 tokens"):
        sizes = dataclasses.replace(SMALL, keys=512)
        pallas_tpu.attention(*problem(0, 1, 600, 1, 1, 64)[0], None, None, sizes=sizes)


def test_refuses_gradients_that_fit_no_chip():
    x = jax.ShapeDtypeStruct((1, 1 << 17, 1, 128), jnp.bfloat16)

    def loss(x):
        return pallas_tpu.attention(x, x, x, None, None, interpret=False).sum()

    with pytest.raises(
        ValueError, match="shard the sequence over more devices of the context axis"
    ):
        jax.eval_shape(jax.grad(loss), x)


@pytest.mark.parametrize(
    ("length", "block", "compiled_mib"),
    [(4096, 1024, 15.4), (16384, 1024, 45.4), (4096, 512, 12.8)],
)
def test_knows_what_the_backward_pass_takes(length, block, compiled_mib):
    """The estimate agrees with the VMEM in the compiler's schedules."""
    assert block_sizes.backward_bytes(length, 128, block) / 2**20 == pytest.approx(
        compiled_mib, rel=0.02
    )
