"""The cross-entropy and its gradients against the float64 oracle, in blocks and over shards."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # races_found has no public name
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from kernels.cross_entropy import (
    IMPLEMENTATIONS,
    api,
    block_sizes,
    cross_entropy,
    pallas_tpu,
    reference,
    token_losses,
)

TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}
UNOPTIMISED = {"xla_backend_optimization_level": 0}
CASES = [  # B, T, D, V, dtype: tokens and vocabulary that are and are not multiples of a block
    (2, 150, 64, 300, "float32"),
    (1, 256, 32, 256, "float32"),
    (3, 45, 128, 130, "bfloat16"),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("kernels.cross_entropy.xla.CHUNK", 64)
    monkeypatch.setattr(pallas_tpu, "CHUNK", 256)
    monkeypatch.setattr(pallas_tpu, "choose", lambda *_: block_sizes.BlockSizes(128, 128))


def problem(B, T, D, V, dtype, seed=0):
    """Returns x_BTD, head_DV, targets_BT and weights_BT, some of them 0.

    The largest logits are about 10, like those of a trained model.
    """
    rng = np.random.default_rng(seed)
    x_BTD, head_DV = rng.normal(size=(B, T, D)), 3 * rng.normal(size=(D, V)) / D**0.5
    targets_BT = rng.integers(0, V, (B, T)).astype(np.int32)
    weights_BT = rng.integers(0, 3, (B, T)).astype(np.float32)
    return jnp.asarray(x_BTD, dtype), jnp.asarray(head_DV, dtype), targets_BT, weights_BT


def with_gradients(function, x_BTD, head_DV, targets_BT, weights_BT):
    """Returns half the loss, and the gradients of activations, head and weights."""
    return jax.value_and_grad(
        lambda x, head, weights: function(x, head, targets_BT, weights) / 2, (0, 1, 2)
    )(x_BTD, head_DV, weights_BT)


def run(inputs, **options):
    step = jax.jit(lambda *inputs: with_gradients(lambda *a: cross_entropy(*a, **options), *inputs))
    return jax.tree.leaves(step.lower(*inputs).compile(UNOPTIMISED)(*inputs))


def oracle(inputs):
    with jax.enable_x64(True):
        exact = [a if a.dtype == np.int32 else jnp.asarray(np.float64(a)) for a in inputs]
        return jax.device_get(jax.tree.leaves(with_gradients(reference.cross_entropy, *exact)))


def relative_error(actual, expected):
    return (
        np.abs(np.float64(actual) - np.float64(expected)).max() / np.abs(np.float64(expected)).max()
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("B", "T", "D", "V", "dtype"), CASES)
def test_equals_oracle(implementation, B, T, D, V, dtype):
    inputs = problem(B, T, D, V, dtype)
    actual, expected = run(inputs, implementation=implementation), oracle(inputs)
    for a, b in zip(actual, expected):
        assert relative_error(a, b) < TOLERANCE[dtype]
    assert not np.asarray(actual[1])[inputs[3] == 0].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_head_in_fp32_keeps_its_precision(implementation):
    """With activations in bf16 the matmul inputs round, the sum over tokens does not."""
    x_BTD, head_DV, targets_BT, weights_BT = problem(1, 256, 32, 256, "bfloat16")
    inputs = x_BTD, head_DV.astype(jnp.float32), targets_BT, weights_BT
    actual = run(inputs, implementation=implementation)
    assert actual[2].dtype == jnp.float32 and relative_error(actual[2], oracle(inputs)[2]) < 4e-3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 1, 2, 4)])
def test_split_equals_whole(implementation, shape):
    """Tokens over data, fsdp and context; the head over fsdp and tensor."""
    inputs = problem(4, 48, 32, 256, "float32")
    axes = ("data", "fsdp", "context", "tensor")
    layout = {
        "tokens": PartitionSpec(("data", "fsdp"), "context"),
        "head": PartitionSpec("fsdp", "tensor"),
    }
    with jax.set_mesh(jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * 4)):
        actual = run(inputs, implementation=implementation, **layout)
        losses_BT = jax.jit(lambda *a: token_losses(*a, implementation=implementation, **layout))(
            *inputs[:3]
        )
    for a, b in zip(actual, oracle(inputs)):
        assert relative_error(a, b) < 1e-5
    np.testing.assert_allclose(losses_BT, reference.token_losses(*inputs[:3]), atol=1e-5)


def test_no_race_and_no_read_out_of_bounds():
    x_BTD, head_DV, targets_BT, weights_BT = inputs = problem(1, 256, 32, 300, "float32")
    checked = pltpu.InterpretParams(
        detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
    )
    options = {"sizes": block_sizes.BlockSizes(128, 128), "interpret": checked}
    losses_T, *gradients = jax.jit(lambda *a: pallas_tpu.losses_and_gradients(*a, (), **options))(
        x_BTD[0], head_DV, targets_BT[0], weights_BT[0]
    )
    np.testing.assert_allclose(
        losses_T, reference.token_losses(x_BTD, head_DV, targets_BT)[0], atol=2e-5
    )
    for actual, expected in zip(gradients, oracle(inputs)[1:]):
        assert relative_error(actual, 2 * expected) < 2e-5
    assert not interpret_pallas_call.races.races_found


def test_logits_are_never_whole():
    T, D, V = 4096, 16, 2048
    x_BTD, targets_BT = (
        jax.ShapeDtypeStruct((1, T, D), jnp.float32),
        jax.ShapeDtypeStruct((1, T), jnp.int32),
    )
    arguments = (
        x_BTD,
        jax.ShapeDtypeStruct((D, V), jnp.float32),
        targets_BT,
        jax.ShapeDtypeStruct((1, T), jnp.float32),
    )

    def temporary(loss):
        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert 8 * temporary(cross_entropy) < temporary(reference.cross_entropy)


@pytest.mark.parametrize("vmem", [16 << 20, 64 << 20, 128 << 20])
@pytest.mark.parametrize("d_model", [128, 4096])
def test_blocks_fit_the_chip(d_model, vmem):
    sizes = block_sizes.choose(1000, 32_016, d_model, 2, 4, vmem)
    assert (
        block_sizes.needed_bytes(max(sizes.tokens, sizes.vocab), d_model, 2, 4)
        <= sizes.vmem_bytes
        < vmem
    )
    assert sizes.tokens % block_sizes.LANES == 0 == sizes.vocab % block_sizes.LANES


def test_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="no cross-entropy 'fast'; choose one of"):
        cross_entropy(*problem(*CASES[0]), implementation="fast")
    with pytest.raises(ValueError, match="width 65536 does not fit 16 MiB of VMEM"):
        block_sizes.choose(1000, 1000, 65_536, 2, 4, 16 << 20)


@pytest.mark.parametrize(
    ("where", "on_mesh", "d_model", "chosen"),
    [
        ("tpu", True, 4096, "pallas_tpu"),
        ("tpu", True, 1 << 17, "xla"),
        ("tpu", False, 4096, "xla"),
        ("cpu", True, 4096, "xla"),
    ],
)
def test_default_runs_on_these_devices(monkeypatch, where, on_mesh, d_model, chosen):
    """A kernel that no mesh splits runs on one device only, and there are eight."""
    monkeypatch.setattr(api, "platform", lambda: where)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh) if on_mesh else contextlib.nullcontext():
        x_BTD = jax.ShapeDtypeStruct((1, 8, d_model), jnp.float32)
        head_DV = jax.ShapeDtypeStruct((d_model, 128), jnp.float32)
        assert api.default_implementation(x_BTD, head_DV) == chosen
