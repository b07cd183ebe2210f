"""The train step with adapters: the same on every mesh; the frozen weights stay as they are."""

import jax
import numpy as np
import pytest
import toy
from lora_cases import adapted_stage, frozen

from codellama_jax.config import LoraConfig, MeshConfig, OptimizerConfig
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.loop import owned_rows, place, stop_flags
from codellama_jax.training.step import (
    abstract_state,
    compile_eval_step,
    compile_train_step,
    init_state,
)

MESHES = {
    "1": (MeshConfig(), 1),
    "2,2,1,2": (MeshConfig(2, 2, 1, 2), 8),
    "8 fsdp": (MeshConfig(fsdp=8), 8),
}
LORA = LoraConfig(4, targets=("q", "v", "o", "gate", "down"), quantize_base="int8")
# At a higher rate AdamW's first updates, the signs of tiny gradients, would differ by rounding.
STAGE = adapted_stage(LORA, optimizer=OptimizerConfig(3e-3, warmup_steps=1))


def train(name, steps=2):
    """Returns losses, adapters after two steps, and frozen weights before and after all steps."""
    config, devices = MESHES[name]
    mesh = make_mesh(config, jax.devices()[:devices])
    with on_mesh(mesh):
        base = init_state(toy.stage(), mesh, 0).params
        state = init_state(STAGE, mesh, 1).replace(frozen=frozen(STAGE.model, LORA, base))
        before = jax.device_get(state.frozen)
        placed = place(toy.batch(), owned_rows(mesh, 8), 8, mesh)
        placed["stop"] = stop_flags(0, 8, mesh)
        step, losses = compile_train_step(STAGE, mesh), []
        for number in range(steps):
            state, metrics = step(state, placed)
            losses.append(float(metrics["loss"]))
            if number == 1:
                adapters = jax.device_get(state.params)
    return losses, adapters, before, jax.device_get(state.frozen)


@pytest.fixture(scope="module")
def alone():
    return train("1", steps=10)


@pytest.mark.parametrize("name", ["2,2,1,2", pytest.param("8 fsdp", marks=pytest.mark.slow)])
def test_meshes_agree(alone, name):
    losses, adapters, *_ = train(name)
    assert losses == pytest.approx(alone[0][:2], abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), adapters, alone[1])


def test_only_adapters_train(alone):
    losses, adapters, before, after = alone
    assert losses[-1] < losses[0] - 0.1
    assert all(np.any(leaf) for leaf in jax.tree.leaves(adapters))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_the_optimizer_has_no_state_of_frozen_weights():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with on_mesh(mesh):
        state = abstract_state(STAGE, mesh)
    adapters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(moments) == 2 * adapters
    assert state.frozen["layers"]["ffn"]["gate_up"].values_XI.dtype == np.int8


def test_the_first_loss_is_that_of_the_frozen_model(alone):
    """Step 0 is evaluated before any update: its loss is that of the quantized weights."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with on_mesh(mesh):
        base = init_state(toy.stage(), mesh, 0).params
        weights = frozen(STAGE.model, LORA, base)
        adapters = init_state(STAGE, mesh, 1).params
        placed = place(toy.batch(seed=0), list(range(8)), 8, mesh)
        loss, tokens = compile_eval_step(STAGE, mesh)((adapters, weights), placed)
    assert float(loss / tokens) == pytest.approx(alone[0][0], abs=1e-6)
