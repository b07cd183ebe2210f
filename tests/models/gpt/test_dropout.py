"""Dropout: its shares, its keys, and the same training on every mesh and with micro-batches."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import toy

from codellama_jax.config import MeshConfig
from codellama_jax.models.gpt.layers import Attention
from codellama_jax.models.layers import Inputs, kept
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


def test_neither_mesh_nor_micro_batches_change_what_is_dropped(multi_query):
    model = dataclasses.replace(multi_query, dropout=0.2, embedding_dropout=0.1)
    expected = losses(model)
    assert expected[0] != expected[1]
    np.testing.assert_allclose(losses(model, (1, 2, 2, 2), micro_batches=2), expected, rtol=1e-5)


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
