"""Dropout: its shares, its keys, and the same training on every mesh and with micro-batches."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from published import random_params

from codellama_jax.config import MeshConfig
from codellama_jax.models.family import family_of
from codellama_jax.models.gpt.layers import Attention
from codellama_jax.models.layers import Inputs, kept
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.objectives import next_token
from codellama_jax.training.step import compile_train_step, fresh_state


def test_factors_keep_the_mean_and_depend_on_the_sequence_alone():
    key = jax.random.key(0)
    factors = np.asarray(kept(key, jnp.arange(8), 0.2, (64, 32)))
    assert set(np.unique(factors)) == {0.0, np.float32(1 / 0.8)}
    # Four standard deviations of a mean of 16,384.
    assert abs((factors == 0).mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / factors.size)
    np.testing.assert_array_equal(kept(key, jnp.array([5, 2]), 0.2, (64, 32)), factors[[5, 2]])
    assert len({row.tobytes() for row in factors}) == 8


@pytest.fixture
def dropping(multi_query):
    return dataclasses.replace(multi_query, dropout=0.2, embedding_dropout=0.1)


def loss_of(model, mesh, key):
    """Returns the mean loss of the toy batch in training on a mesh."""
    batch = toy.batch() | {"sequences": np.arange(8)}
    loss = functools.partial(next_token, family_of(model).module(model))
    with on_mesh(mesh):
        total, sums = jax.jit(loss)(random_params(model), batch, key)
    return float(total / sums["tokens"])


@pytest.mark.slow
def test_a_step_drops_by_seed_and_number_whatever_its_micro_batches(dropping):
    stage, params = toy.stage(model=dropping, micro_batches=2), random_params(dropping)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with on_mesh(mesh):
        state = fresh_state(stage, mesh, jax.tree.map(jnp.asarray, params))
        step = compile_train_step(stage, mesh, seed=3)
        batch = toy.batch() | {"stop": np.zeros(8, np.int32)}
        _, metrics = step(state.replace(step=jnp.array(7)), batch)
    expected = loss_of(dropping, mesh, jax.random.fold_in(jax.random.key(3), 7))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_a_mesh_changes_nothing_that_is_dropped(dropping):
    """Also where it shards the length, whose tokens it reorders."""
    alone, mesh = (
        make_mesh(MeshConfig(*axes), jax.devices()[: math.prod(axes)])
        for axes in ((1, 1, 1, 1), (1, 1, 2, 2))
    )
    key, other = jax.random.split(jax.random.key(0))
    expected = loss_of(dropping, alone, key)
    np.testing.assert_allclose(loss_of(dropping, mesh, key), expected, rtol=1e-5)
    assert abs(loss_of(dropping, alone, other) - expected) > 1e-3


def test_attention_weights_are_dropped_by_the_key_in_training_alone(multi_query):
    rows, rng = toy.batch(2), np.random.default_rng(0)
    x_BTD = jnp.asarray(rng.normal(size=(2, 16, 64)), jnp.float32)
    training = Inputs(rows["positions"], rows["segment_ids"], sequences_B=jnp.arange(2))
    config = dataclasses.replace(multi_query, attention_dropout=0.5, attention="reference")
    layer = Attention(config)
    params = nn.unbox(layer.init(jax.random.key(1), x_BTD, x_BTD, Inputs(*arrays_of(rows))))

    @functools.partial(jax.jit, static_argnums=0)
    def output(layer, inputs, key):
        return layer.apply(params, x_BTD, x_BTD, inputs, rngs={"dropout": key})[0]

    first, again, other = (output(layer, training, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max(axis=(1, 2)) > 1e-3).all()
    # Without sequences, as in generation, nothing is dropped.
    inputs, key = Inputs(*arrays_of(rows)), jax.random.key(0)
    plain, without = output(layer, inputs, key), output(Attention(multi_query), inputs, key)
    np.testing.assert_allclose(plain, without, atol=1e-5)


def arrays_of(rows):
    return rows["positions"], rows["segment_ids"]
