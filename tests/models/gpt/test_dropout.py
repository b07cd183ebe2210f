"""Dropout: its shares, its keys, and the same training on every mesh and with micro-batches."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from codellama_jax.config import MeshConfig
from codellama_jax.models.family import family_of
from codellama_jax.models.layers import kept
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.step import compile_train_step, init_state


def test_factors_keep_the_mean_and_depend_on_the_sequence_alone():
    key = jax.random.key(0)
    factors = np.asarray(kept(key, jnp.arange(8), 0.2, (64, 32)))
    assert set(np.unique(factors)) == {0.0, np.float32(1 / 0.8)}
    # Four standard deviations of a mean of 16,384.
    assert abs((factors == 0).mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / factors.size)
    np.testing.assert_array_equal(kept(key, jnp.array([5, 2]), 0.2, (64, 32)), factors[[5, 2]])
    assert len({row.tobytes() for row in factors}) == 8


@pytest.fixture
def small(top_query):
    return dataclasses.replace(top_query, d_model=32, d_ff=32, head_dim=8, n_kv_heads=1)


def losses(model, axes=(1, 1, 1, 1), **changes):
    """Returns losses and gradient norms of two steps of a stage with the seed 3."""
    stage, measures = toy.stage(steps=2, model=model, **changes), []
    mesh = make_mesh(MeshConfig(*axes), jax.devices()[: math.prod(axes)])
    with on_mesh(mesh):
        state, step = init_state(stage, mesh, 0), compile_train_step(stage, mesh, seed=3)
        for _ in range(2):
            # The same batch: only the keys of the two steps differ.
            state, metrics = step(state, {**toy.batch(), "stop": np.zeros(8, np.int32)})
            measures.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
    return measures


def test_neither_mesh_nor_micro_batches_change_what_is_dropped(small):
    model = dataclasses.replace(small, dropout=0.2, embedding_dropout=0.1)
    expected = losses(model)
    np.testing.assert_allclose(losses(model, (1, 2, 2, 2), micro_batches=2), expected, rtol=1e-5)


def test_a_step_drops_by_its_key_and_generation_drops_nothing(small):
    """Also of attention weights, whose sum over the keys is no longer 1."""
    model = dataclasses.replace(small, attention_dropout=0.5, attention="reference")
    rows = toy.batch(2)
    module, inputs = family_of(model).module(model), ("tokens", "positions", "segment_ids")
    arrays = [rows[name] for name in inputs]
    params = nn.unbox(module.init(jax.random.key(1), *arrays)["params"])

    @jax.jit
    def hidden(key):
        sequences_B = jnp.arange(2)
        rngs = {"dropout": key}
        return module.apply({"params": params}, *arrays, sequences_B, method="hidden", rngs=rngs)

    first, again, other = (hidden(jax.random.key(seed)) for seed in (0, 0, 1))
    plain = module.apply({"params": params}, *arrays, method="hidden")
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max(axis=(1, 2)) > 1e-3).all()
    without = family_of(small).module(small)
    np.testing.assert_allclose(
        plain, without.apply({"params": params}, *arrays, method="hidden"), atol=1e-5
    )
