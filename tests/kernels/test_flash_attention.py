"""Every attention implementation against the float64 oracle: outputs, gradients, and nothing leaking between documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from kernels.flash_attention import attention, pallas_tpu, reference
from kernels.flash_attention.block_sizes import BlockSizes, choose, pieces

SMALL = BlockSizes(block=256, columns=128, diagonal=128, keys=256)  # the smallest that take every path
TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}


def packed_rows(rng, B, T):
    """Returns segments_BT with 1, 2, 3 ... then padding 0, and positions_BT that restart with each document."""
    segments_BT, positions_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for b in range(B):
        cuts = np.sort(rng.choice(np.arange(1, T), size=rng.integers(0, min(5, T)), replace=False))
        bounds = [0, *cuts, T]
        padded = len(bounds) > 2 and rng.random() < 0.5
        for n, (start, end) in enumerate(zip(bounds, bounds[1:]), 1):
            segments_BT[b, start:end] = 0 if padded and end == T else n
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
    return [np.where(rows[2][:, :, None, None] > 0, out, 0), *pullback(do.astype(out.dtype))]


def oracle(inputs, do, rows):
    with jax.enable_x64(True):
        return with_gradients(reference.attention, [jnp.asarray(np.float64(x)) for x in inputs], jnp.asarray(np.float64(do)), rows)


def relative_error(actual, expected):
    return np.abs(np.float64(actual) - np.float64(expected)).max() / np.abs(np.float64(expected)).max()


def kernel(q, k, v, *rows, sizes=SMALL, interpret=True):
    return pallas_tpu.attention(q, k, v, *rows, sizes=sizes, interpret=interpret)


CASES = [  # T, N, K, H, dtype
    (700, 2, 1, 64, "float32"),
    (385, 4, 2, 128, "float32"),
    (512, 4, 1, 128, "bfloat16"),
    (3, 1, 1, 64, "bfloat16"),
]


@pytest.mark.parametrize(("T", "N", "K", "H", "dtype"), CASES)
def test_kernel_equals_oracle(T, N, K, H, dtype):
    inputs, do, rows = problem(T, 2, T, N, K, H, dtype)
    for actual, expected in zip(with_gradients(kernel, inputs, do, rows), oracle(inputs, do, rows)):
        assert relative_error(actual, expected) < TOLERANCE[dtype]
