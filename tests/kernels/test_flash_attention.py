"""The TPU kernels in the interpreter, at block sizes that take every path, against the float64 oracle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # races_found has no public name
from jax.experimental.pallas import tpu as pltpu

from kernels.flash_attention import api, attention, block_sizes, pallas_tpu, reference

SMALL = block_sizes.BlockSizes(block=256, columns=128, diagonal=128, keys=256)
TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}
UNOPTIMISED = {"xla_backend_optimization_level": 0}  # compiling what the interpreter unrolls takes longer than running it
CASES = [  # T, N, K, H, dtype: lengths off and on a block, groups, both head dims
    (700, 2, 1, 64, "float32"),
    (385, 4, 2, 128, "float32"),
    (512, 4, 1, 128, "bfloat16"),
]


def packed_rows(rng, B, T):
    """Returns segments_BT with 1, 2, 3 ... then padding 0, and positions_BT that restart with each document."""
    segments_BT, positions_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for b in range(B):
        bounds = [0, *np.sort(rng.choice(np.arange(1, T), size=3, replace=False)), T]
        for n, (start, end) in enumerate(itertools.pairwise(bounds), 1):
            segments_BT[b, start:end] = 0 if b == 0 and end == T else n
            positions_BT[b, start:end] = np.arange(end - start)
    return segments_BT, positions_BT


def problem(seed, B, T, N, K, H, dtype):
    rng = np.random.default_rng(seed)
    q, k, v, do = (jnp.asarray(rng.normal(size=(B, T, heads, H)), dtype) for heads in (N, K, K, N))
    segments_BT, positions_BT = packed_rows(rng, B, T)
    return (q, k, v), do * (segments_BT > 0)[:, :, None, None], (positions_BT, positions_BT, segments_BT, segments_BT)


def with_gradients(function, inputs, do, rows):
    """Returns the output, where the row is not padding, and the gradients of q, k and v."""
    out, pullback = jax.vjp(lambda q, k, v: function(q, k, v, *rows), *inputs)
    return [jnp.where(rows[2][:, :, None, None] > 0, out, 0), *pullback(do.astype(out.dtype))]


def interpreted(inputs, do, rows, interpret=True):
    kernel = lambda q, k, v, *rows: pallas_tpu.attention(q, k, v, *rows, sizes=SMALL, interpret=interpret)
    run = jax.jit(lambda inputs, do: with_gradients(kernel, inputs, do, rows))
    return run.lower(inputs, do).compile(UNOPTIMISED)(inputs, do)


def oracle(inputs, do, rows):
    with jax.enable_x64(True):
        return with_gradients(reference.attention, [jnp.asarray(np.float64(x)) for x in inputs], jnp.asarray(np.float64(do)), rows)


def relative_error(actual, expected):
    return np.abs(np.float64(actual) - np.float64(expected)).max() / np.abs(np.float64(expected)).max()


@pytest.mark.parametrize(("T", "N", "K", "H", "dtype"), CASES)
def test_kernel_equals_oracle(T, N, K, H, dtype):
    inputs, do, rows = problem(T, 2, T, N, K, H, dtype)
    for actual, expected in zip(interpreted(inputs, do, rows), oracle(inputs, do, rows)):
        assert relative_error(actual, expected) < TOLERANCE[dtype]


def test_no_race_and_no_read_out_of_bounds():
    inputs, do, rows = problem(0, 1, 300, 2, 1, 64, "float32")
    checked = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan")
    for actual, expected in zip(interpreted(inputs, do, rows, checked), oracle(inputs, do, rows)):
        assert relative_error(actual, expected) < 2e-5
    assert not interpret_pallas_call.races.races_found


def test_split_over_batch_and_heads_equals_whole():
    inputs, _, rows = problem(1, 4, 40, 4, 2, 64, "float32")
    names = ("q_positions_BT", "kv_positions_BS", "q_segments_BT", "kv_segments_BS")
    layout = dict(zip(names, map(jnp.asarray, rows)))
    whole = attention(*inputs, **layout, implementation="reference")
    with jax.set_mesh(jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)):
        call = lambda *qkv: attention(*qkv, **layout, implementation="pallas_tpu", batch_axes=("fsdp",), head_axes=("tensor",))
        parts = jax.jit(call).lower(*inputs).compile(UNOPTIMISED)(*inputs)
    mask = rows[2][:, :, None, None] > 0
    np.testing.assert_allclose(np.where(mask, parts, 0), np.where(mask, whole, 0), atol=2e-6)


@pytest.mark.parametrize(("backend", "split", "chosen"), [("tpu", True, "pallas_tpu"), ("tpu", False, "xla"), ("cpu", True, "xla")])
def test_default_runs_on_the_devices_at_hand(monkeypatch, backend, split, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert api.default_implementation(split) == chosen


@pytest.mark.parametrize("length", [1, 128, 129, 1000, 1025, 4096, 5000, 16384, 100_000])
@pytest.mark.parametrize("vmem", [16 << 20, 64 << 20])
def test_blocks_tile_the_padded_row(length, vmem):
    sizes = block_sizes.choose(length, vmem)
    padded = -(-length // sizes.block) * sizes.block
    assert padded % sizes.keys == 0 and sizes.keys % sizes.block == 0 and sizes.block % block_sizes.LANES == 0
    assert padded - length < sizes.block <= 1024


def test_refuses_gradients_that_fit_no_chip():
    x = jax.ShapeDtypeStruct((1, 1 << 17, 1, 128), jnp.bfloat16)
    loss = lambda x: pallas_tpu.attention(x, x, x, None, None, interpret=False).sum()
    with pytest.raises(ValueError, match="split the row over the context axis"):
        jax.eval_shape(jax.grad(loss), x)
