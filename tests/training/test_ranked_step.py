"""Training steps of the ranked objectives, and of masked losses, beside plain JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codellama_jax.config import (
    DataConfig,
    InfillingConfig,
    MeshConfig,
    MixtureConfig,
    OptimizerConfig,
    Stage,
)
from codellama_jax.models.family import family_of
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.loop import owned_rows, place, stop_flags
from codellama_jax.training.objectives import OBJECTIVES
from codellama_jax.training.step import compile_train_step, init_state

B, T, V = 8, 16, 64
MODEL = GPTConfig(
    V,
    d_model=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    d_ff=32,
    tied_embeddings=True,
    n_positions=T,
    compute_dtype="float32",
)


def stage_of(model=MODEL, objective="rrtf", examples="pairs", chat="pangu_coder2"):
    data = DataConfig(
        T, B, MixtureConfig(code=1.0), InfillingConfig(0.0), examples=examples, chat=chat
    )
    return Stage(model, data, OptimizerConfig(1e-3, 1), 10, objective=objective)


def pairs_batch():
    """Returns a batch with two pairs per sequence, of different lengths, and padding."""
    rng = np.random.default_rng(0)
    segments_T = np.repeat([1, 2, 3, 4, 0], [4, 4, 3, 3, 2])
    positions_T = np.concatenate([np.arange(n) for n in (4, 4, 3, 3, 2)])
    signs_T = np.array([0, 0, 1, 1, 0, 0, -1, -1, 0, 1, 1, 0, 0, -1, 0, 0], np.float32)
    gaps_BT = rng.choice([1 / 3, 0.5, 1.0], (B, 1)).astype(np.float32)
    return {
        "tokens": rng.integers(0, V, (B, T), np.int32),
        "targets": rng.integers(0, V, (B, T), np.int32),
        "segment_ids": np.tile(segments_T, (B, 1)).astype(np.int32),
        "positions": np.tile(positions_T, (B, 1)).astype(np.int32),
        "weights": gaps_BT * signs_T,
    }


def plain_loss(model, params, batch, mean, unit_gaps):
    """Computes L_rank + L_ft pair by pair, each answer alone in a sequence."""
    answers = [(row, segment) for row in range(B) for segment in (1, 2, 3, 4)]
    arrays = {name: np.zeros((len(answers), 4), array.dtype) for name, array in batch.items()}
    for number, (row, segment) in enumerate(answers):
        inside_T = batch["segment_ids"][row] == segment
        for name, array in batch.items():
            arrays[name][number, : inside_T.sum()] = array[row][inside_T]
    is_inside_NT = np.minimum(arrays["segment_ids"], 1)
    inputs = [arrays["tokens"], np.tile(np.arange(4, dtype=np.int32), (len(answers), 1))]
    logits_NTV = model.apply({"params": params}, *inputs, is_inside_NT)
    log_p_NTV = jax.nn.log_softmax(logits_NTV.astype(jnp.float32))
    log_p_NT = jnp.take_along_axis(log_p_NTV, arrays["targets"][..., None], axis=-1)[..., 0]
    is_answer_NT = arrays["weights"] != 0
    count_N = is_answer_NT.sum(1)
    sum_N = (log_p_NT * is_answer_NT).sum(1)
    p_N = sum_N / count_N
    total = 0.0
    for teacher in range(0, len(answers), 2):
        gap = 1.0 if unit_gaps else arrays["weights"][teacher].max()
        total -= gap * jnp.minimum(0, p_N[teacher] - p_N[teacher + 1])
        total -= p_N[teacher] if mean else sum_N[teacher]
    return total


@pytest.fixture(scope="module")
def model_and_params():
    params = init_state(stage_of(), make_mesh(MeshConfig(), jax.devices()[:1]), 0).params
    return family_of(MODEL).module(MODEL), jax.tree.map(lambda x: 4 * jnp.asarray(x), params)


@pytest.mark.parametrize(
    ("objective", "mean", "unit_gaps"),
    [("rrtf", False, False), ("rrtf_mean", True, False), ("rrhf", True, True)],
)
def test_loss_and_gradient_equal_plain_jax(model_and_params, objective, mean, unit_gaps):
    model, params = model_and_params
    batch = pairs_batch()

    def packed(params):
        return OBJECTIVES[objective](model, params, batch)[0]

    def plain(params):
        return plain_loss(model, params, batch, mean, unit_gaps)

    loss, gradient = jax.jit(jax.value_and_grad(packed))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(plain))(params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def step_on(mesh_config, devices, stage, batch):
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    with on_mesh(mesh):
        state = init_state(stage, mesh, 0)
        rows = owned_rows(mesh, B)
        placed = place(batch, rows, B, mesh) | {"stop": stop_flags(0, B, mesh)}
        state, metrics = compile_train_step(stage, mesh)(state, placed)
        return jax.tree.map(np.asarray, (state.params, metrics))


def test_the_ranked_step_is_the_same_on_a_mesh():
    """Also with dropout, whose key the step passes to every objective."""
    model = dataclasses.replace(MODEL, dropout=0.1, embedding_dropout=0.1)
    stage, batch = stage_of(model), pairs_batch()
    alone, metrics = step_on(MeshConfig(), 1, stage, batch)
    sharded, metrics_8 = step_on(MeshConfig(data=8, fsdp=1), 8, stage, batch)
    assert metrics["tokens"] == metrics_8["tokens"] == 2 * B
    assert float(metrics["loss"]) == pytest.approx(float(metrics_8["loss"]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_batch_without_any_weight_changes_nothing_into_nan():
    stage = stage_of(objective="next_token", examples="documents", chat="llama2")
    batch = {**pairs_batch(), "weights": np.zeros((B, T), np.float32)}
    params, metrics = step_on(MeshConfig(), 1, stage, batch)
    assert metrics["loss"] == 0 and metrics["gradient_norm"] == 0
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(params))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_parts_of_the_loss_are_logged_apart(micro_batches):
    stage = dataclasses.replace(stage_of(), micro_batches=micro_batches)
    _, metrics = step_on(MeshConfig(), 1, stage, pairs_batch())
    parts = metrics["rank_loss"] + metrics["tuning_loss"]
    assert float(metrics["loss"]) == pytest.approx(float(parts), rel=1e-5)
    assert 0 < metrics["rank_loss"] < metrics["tuning_loss"]
    # L_ft is a sum over the two tokens of each teacher's answer: log(V) each, untrained.
    assert float(metrics["tuning_loss"]) == pytest.approx(2 * np.log(V), rel=0.05)
