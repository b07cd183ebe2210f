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
    solve,
    visible,
    with_gradients,
)
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # races_found has no public name
from jax.experimental.pallas import tpu as pltpu

from kernels.flash_attention import attention, block_sizes, pallas_tpu

CHECKED = pltpu.InterpretParams(
    detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
)


# Blocks of 128 tokens, and segments of so many: with 1,024 the sequences here have one segment.
BLOCKS = block_sizes.BlockSizes(
    block=128, queries=128, columns=128, diagonal=128, keys=128, segment=1024
)


@pytest.mark.parametrize(
    ("T", "N", "H", "documents", "segment"),
    [(300, 2, 64, True, 1024), (257, 1, 128, False, 1024), (256, 2, 64, True, 128)],
)
def test_no_race_and_no_read_out_of_bounds(T, N, H, documents, segment):
    given = problem(0, 1, T, N, 1, H, documents=documents)
    sizes = dataclasses.replace(BLOCKS, segment=segment)
    kernel = functools.partial(pallas_tpu.attention, sizes=sizes, interpret=CHECKED)

    def run(qkv, do):
        return with_gradients(kernel, qkv, do, given[2])

    for actual, expected in zip(compiled(run, *given[:2]), oracle(*given)):
        assert relative_error(actual, expected) <= 2e-5
    assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize(
    ("lengths", "N", "K", "segment"),
    [
        ((600,), 2, 1, 256),  # padded to three segments, without segments to one of 640 tokens
        ((512,), 1, 1, 128),  # four segments of one block
        # Queries of the last segment see only one segment before it, those of the third see all.
        ((300, 200), 4, 2, 128),
        ((90, 300, 5, 200), 2, 1, 256),
        ((128, 384), 1, 1, 128),  # documents that end with segments
    ],
)
def test_gradients_in_segments_are_those_in_one(lengths, N, K, segment):
    T = sum(lengths)
    qkv, do, _ = problem(3, 1, T, N, K, 64, documents=False)
    positions_BT = np.arange(T, dtype=np.int32)[None]
    segments_BT = np.repeat(1 + np.arange(len(lengths)), lengths)[None]
    rows = positions_BT, positions_BT, segments_BT, segments_BT
    results = []
    for sizes in (BLOCKS, dataclasses.replace(BLOCKS, segment=segment)):
        results.append(solve(functools.partial(pallas_tpu.attention, sizes=sizes), qkv, do, rows))
    for whole, split in zip(*results):
        # The same blocks, and sums in fp32; heads of a group are added in another order.
        assert relative_error(split, whole) <= 1e-6


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
@pytest.mark.parametrize(("head_dim", "itemsize"), [(64, 2), (128, 4), (256, 2)])
def test_blocks_and_segments_tile_the_padded_row(length, vmem, head_dim, itemsize):
    sizes = block_sizes.choose(length, head_dim, itemsize, vmem)
    padded = length + sizes.padding(length)
    assert padded % min(padded, sizes.segment) == 0 == sizes.segment % sizes.queries
    needed = functools.partial(
        block_sizes.backward_bytes, head_dim=head_dim, itemsize=itemsize, block=sizes.block
    )
    assert needed(sizes.segment) <= sizes.vmem_bytes < vmem
    # A sequence is split only if it has to be, and then into as few parts as possible.
    parts = -(-padded // sizes.segment)
    if parts > 1:
        longer = -(-length // (parts - 1) // sizes.queries) * sizes.queries
        assert needed(longer) > sizes.vmem_bytes
    assert (
        padded % sizes.keys == 0
        and sizes.keys % sizes.queries == 0
        and sizes.queries % sizes.block == 0
    )
    assert padded - length < parts * sizes.queries and sizes.queries <= 2048
    assert sizes.block % block_sizes.LANES == 0


@pytest.mark.parametrize(
    ("vmem", "head_dim", "itemsize", "keys"),
    [
        (64 << 20, 128, 2, 16_384),
        (64 << 20, 128, 4, 16_384),
        (64 << 20, 256, 4, 8192),  # v5p: the compiler refuses 16,384, which need 87 of 64 MiB
        (16 << 20, 256, 4, 2048),  # v4: 4,096 need 22.8 of 16 MiB
    ],
)
def test_keys_of_wide_heads_fit_the_vmem(vmem, head_dim, itemsize, keys):
    assert block_sizes.choose(16_384, head_dim, itemsize, vmem).keys == keys


@pytest.mark.parametrize(
    ("vmem", "longest", "share"), [(64 << 20, 20_480, 0.15), (16 << 20, 4608, 0.2)]
)
def test_limits_of_the_documentation(vmem, longest, share):
    """docs/kernels.md states the longest sequence that is not split, and the padding of others."""
    # Blocks are multiples of 128 tokens, so that the most padding follows one of these.
    for length in (longest, *range(longest + 1, 100_000, 128)):
        sizes = block_sizes.choose(length, 128, 2, vmem)
        padding = sizes.padding(length)
        assert (length + padding > sizes.segment) == (length > longest)
        assert padding < share * length


def test_refuses_blocks_that_leave_a_rest():
    for wrong in ({"keys": 512}, {"segment": 384}):
        sizes = dataclasses.replace(SMALL, **wrong)
        message = r"queries=256.* do not divide a sequence of 768 tokens"
        with pytest.raises(ValueError, match=message):
            pallas_tpu.attention(*problem(0, 1, 600, 1, 1, 64)[0], None, None, sizes=sizes)


@pytest.mark.parametrize("head_dim", [128, 2048])
def test_refuses_only_gradients_of_which_no_segment_fits(head_dim):
    x = jax.ShapeDtypeStruct((1, 1 << 17, 1, head_dim), jnp.bfloat16)

    def loss(x):
        return pallas_tpu.attention(x, x, x, None, None, interpret=False).sum()

    if head_dim == 128:
        assert jax.eval_shape(jax.grad(loss), x).shape == x.shape
        return
    message = "the gradients of 2048 tokens of head dim 2048 take .* use implementation='xla'"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(jax.grad(loss), x)


@pytest.mark.parametrize(
    ("length", "block", "compiled_mib"),
    [(4096, 1024, 15.4), (16384, 1024, 45.4), (4096, 512, 12.8)],
)
def test_knows_what_the_backward_pass_takes(length, block, compiled_mib):
    """The estimate agrees with the VMEM in the compiler's schedules."""
    assert block_sizes.backward_bytes(length, 128, 2, block) / 2**20 == pytest.approx(
        compiled_mib, rel=0.02
    )
