"""The train step: the same on every mesh, with micro-batches, and refused if it cannot run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import MODEL, batch, stage

from codellama_jax.config import MeshConfig, OptimizerConfig
from codellama_jax.errors import UserError
from codellama_jax.sharding.mesh import check_mesh, check_sharded, make_mesh, on_mesh
from codellama_jax.training.loop import check_stage, owned_rows, place, stop_flags
from codellama_jax.training.step import (
    abstract_state,
    check_memory,
    compile_eval_step,
    compile_train_step,
    decayed,
    init_state,
    learning_rate,
)

MESHES = {
    "1": (MeshConfig(), 1),
    "8 fsdp": (MeshConfig(fsdp=8), 8),
    "2,2,1,2": (MeshConfig(2, 2, 1, 2), 8),
    "1,2,2,2": (MeshConfig(1, 2, 2, 2), 8),
}


def train(stage, mesh_config, devices, steps=1):
    """Returns the metrics of each step and the parameters after them."""
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    size, history = stage.data.batch_size, []
    with on_mesh(mesh):
        state, step = init_state(stage, mesh, 0), compile_train_step(stage, mesh)
        rows = owned_rows(mesh, size)
        for i in range(steps):
            placed = place(batch(size, stage.data.seq_len, seed=i), rows, size, mesh) | {
                "stop": stop_flags(0, size, mesh)
            }
            state, metrics = step(state, placed)
            history.append({k: float(v) for k, v in metrics.items()})
    return history, jax.device_get(state.params)


@pytest.fixture(scope="module")
def alone():
    return train(stage(), *MESHES["1"], steps=2)


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_meshes_agree(alone, name):
    """Loss, gradient norm and parameters agree after two updates.

    AdamW's first updates are the sign of every gradient.
    """
    history, params = train(stage(), *MESHES[name], steps=2)
    for metrics, expected in zip(history, alone[0]):
        assert metrics == pytest.approx(expected, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, alone[1])


def test_micro_batches_weigh_every_token_the_same(alone):
    """The rows hold different numbers of tokens, so that a mean of means would differ."""
    history, params = train(stage(micro_batches=4), *MESHES["1"], steps=2)
    for metrics, expected in zip(history, alone[0]):
        assert metrics == pytest.approx(expected, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, alone[1])


def test_micro_batches_on_a_mesh(alone):
    history, _ = train(stage(micro_batches=2), *MESHES["2,2,1,2"], steps=1)
    assert history[0] == pytest.approx(alone[0][0], abs=1e-5)


def test_loss_falls_and_evaluation_agrees():
    history, _ = train(
        stage(optimizer=OptimizerConfig(1e-2, warmup_steps=1)), *MESHES["1"], steps=1
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with on_mesh(mesh):
        state = init_state(stage(), mesh, 0)
        rows = place(batch(8, 16), list(range(8)), 8, mesh)
        loss, tokens = compile_eval_step(stage(), mesh)(state.params, rows)
        assert float(loss / tokens) == pytest.approx(history[0]["loss"], abs=1e-6)
        assert int(tokens) == int(np.asarray(rows["weights"]).sum())
        step = compile_train_step(stage(), mesh)
        flags = stop_flags(0, 8, mesh)
        losses = []
        for _ in range(8):
            state, metrics = step(state, rows | {"stop": flags})
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_loss_is_the_weighted_mean_of_the_tokens(micro_batches):
    """Twice the weight counts a token as often as two of it; weight 0 leaves it out."""
    toy_stage, mesh = stage(micro_batches=micro_batches), make_mesh(MeshConfig(), jax.devices()[:1])
    rows, rng = batch(), np.random.default_rng(1)
    real = rows["weights"]
    weights = real * rng.integers(0, 3, real.shape)
    with on_mesh(mesh):
        state = init_state(toy_stage, mesh, 0)
        sums = []
        for part in (real * (weights > 0), real * (weights > 1)):
            placed = place(rows | {"weights": part}, list(range(8)), 8, mesh)
            sums.append(compile_eval_step(toy_stage, mesh)(state.params, placed))
        loss, tokens = (float(once + twice) for once, twice in zip(*sums))
        placed = place(rows | {"weights": weights}, list(range(8)), 8, mesh)
        placed["stop"] = stop_flags(0, 8, mesh)
        _, metrics = compile_train_step(toy_stage, mesh)(state, placed)
    assert tokens == weights.sum() == float(metrics["tokens"])
    assert float(metrics["loss"]) == pytest.approx(loss / tokens, abs=1e-6)


def test_a_stop_flag_reaches_the_metrics():
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    with on_mesh(mesh):
        flags = jnp.maximum(stop_flags(0, 8, mesh), jnp.asarray([0, 0, 0, 0, 0, 15, 0, 0]))
        placed = place(batch(), list(range(8)), 8, mesh) | {"stop": flags}
        _, metrics = compile_train_step(stage(), mesh)(init_state(stage(), mesh, 0), placed)
    assert int(metrics["stop"]) == 15


def test_schedule_is_the_papers():
    rate = learning_rate(OptimizerConfig(3e-4, warmup_steps=1000), steps=119_209)
    assert float(rate(0)) == pytest.approx(3e-7, rel=1e-4)
    assert float(rate(999)) == pytest.approx(3e-4, rel=1e-6)
    assert float(rate(119_208)) == pytest.approx(1e-5, rel=1e-3)
    assert float(rate((119_209 + 1000) // 2)) == pytest.approx((3e-4 + 1e-5) / 2, rel=1e-2)


def test_weight_decay_spares_the_norms():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with on_mesh(mesh):
        params = abstract_state(stage(), mesh).params
    spared = [
        jax.tree_util.keystr(path)
        for path, yes in jax.tree_util.tree_leaves_with_path(decayed(stage().model, params))
        if not yes
    ]
    assert len(spared) == 3
    assert all("norm" in name for name in spared)


def test_a_state_is_the_same_on_every_mesh():
    states = []
    for config, devices in (MESHES["1"], MESHES["2,2,1,2"]):
        mesh = make_mesh(config, jax.devices()[:devices])
        with on_mesh(mesh):
            states.append(jax.device_get(init_state(stage(), mesh, 7)))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert isinstance(states[0].opt_state, tuple) and optax.global_norm(states[0].params) > 0


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(data=3), "data=3, fsdp=-1.* needs a multiple of 3 devices and there are 8"),
        (MeshConfig(fsdp=4), "needs 4 devices and there are 8"),
    ],
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config, jax.devices())


@pytest.mark.parametrize(
    "config, changes, message",
    [
        (MeshConfig(fsdp=8), {"batch_size": 12}, "12 sequences .* multiple of 8"),
        (
            MeshConfig(fsdp=8),
            {"micro_batches": 2},
            "8 sequences in 2 micro-batches .* multiple of 16",
        ),
        (
            MeshConfig(fsdp=1, context=8),
            {"seq_len": 12},
            "seq_len 12 does not divide over context=8",
        ),
        (
            MeshConfig(fsdp=1, context=8),
            {"seq_len": 20},
            "seq_len 20 does not divide over context=8",
        ),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_or_the_batch_is_refused(config, changes, message):
    arguments = {"batch_size": 8, "micro_batches": 1, "seq_len": 16} | changes
    with pytest.raises(UserError, match=message):
        check_mesh(make_mesh(config, jax.devices()), MODEL, **arguments)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"d_model": 2**20, "n_layers": 10_000, "d_ff": 2**24}},
        {"data": {"seq_len": 2**24, "batch_size": 2**20}},
    ],
)
def test_a_stage_that_cannot_fit_is_refused(changes):
    toy_stage, mesh = stage(), make_mesh(MeshConfig(fsdp=8), jax.devices())
    check_memory(toy_stage, mesh)
    for part, fields in changes.items():
        changed = dataclasses.replace(getattr(toy_stage, part), **fields)
        large = dataclasses.replace(toy_stage, **{part: changed})
    with pytest.raises(UserError, match=r"model is too large: a step needs at least .* GB"):
        check_memory(large, mesh)
    check_memory(dataclasses.replace(large, steps=0), mesh)


def test_float16_imports_a_model_and_trains_none():
    half, mesh = dataclasses.replace(MODEL, compute_dtype="float16"), make_mesh(MeshConfig())
    check_stage(stage(model=half, steps=0), mesh)
    with pytest.raises(UserError, match="compute_dtype is float16, which loses small gradients"):
        check_stage(stage(model=half), mesh)


def test_parameters_that_stay_whole_are_refused():
    mesh = make_mesh(MeshConfig(fsdp=8), jax.devices())
    with on_mesh(mesh):
        params = abstract_state(stage(), mesh).params
        placed = jax.tree.map(lambda a: a.sharding, params)
        whole = jax.tree.map(
            lambda s: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()), placed
        )
        check_sharded(params, placed, mesh)
        with pytest.raises(UserError, match="100% of the parameters are not sharded"):
            check_sharded(params, whole, mesh)


def test_bf16_trains_near_fp32(alone):
    history, _ = train(
        stage(model=dataclasses.replace(MODEL, compute_dtype="bfloat16")), *MESHES["1"], steps=2
    )
    assert history[1]["loss"] == pytest.approx(alone[0][1]["loss"], abs=2e-2)
