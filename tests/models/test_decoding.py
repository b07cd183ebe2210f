"""Reading more tokens after a filled cache is reading the whole text, and the same as steps."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import MODEL

from codellama_jax.config import MeshConfig
from codellama_jax.generation.quantize import quantized
from codellama_jax.generation.settings import Quantization
from codellama_jax.models import decoding
from codellama_jax.models.family import Family, boxed_params, family_of
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.trained import TrainedModel, abstract_params
from codellama_jax.sharding.mesh import make_mesh, on_mesh_of

GPT = GPTConfig(
    64, 32, 1, 4, 1, 8, 64, compute_dtype="float32", remat="none", n_positions=64, init_std=0.1
)
LLAMA = dataclasses.replace(MODEL, n_layers=1)
SCALED = {"rope_scaling": 4.0, "rope_original_length": 16}
CONFIGS = {
    "linear": dataclasses.replace(LLAMA, rope_scaling=4.0, head_dim=12, attention_bias="all"),
    "llama3": dataclasses.replace(LLAMA, rope_type="llama3", n_kv_heads=4, **SCALED),
    "multi-query": GPT,
    "top query": dataclasses.replace(GPT, n_kv_heads=4, top_query=True, head_dim=6),
}
CAPACITY, SEQUENCES = 40, 3
STARTS, LENGTHS = np.array([9, 1, 14]), np.array([7, 4, 1])
TOKENS = np.random.default_rng(0).integers(1, 64, (SEQUENCES, CAPACITY))


def params_of(config):
    params = jax.jit(lambda: nn.unbox(boxed_params(config, jax.random.key(0))))()
    return jax.tree.map(lambda a: 3 * a, params)


def model_of(config, kv_cache="none", weights="none"):
    model = TrainedModel(config, params_of(config), None, "toy", kv_cache)
    return quantized(model, Quantization(weights, kv_cache))


@functools.partial(jax.jit, static_argnums=(0, 1))
def begun(config, kv_cache, weights):
    """Returns a cache of the first STARTS tokens of each sequence."""
    padded_BT = np.where(np.arange(14)[None] < STARTS[:, None], TOKENS[:, :14], 0)
    arrays = (weights, jnp.asarray(padded_BT), jnp.asarray(STARTS))
    return decoding.prefill(config, *arrays, CAPACITY - 14, kv_cache)[1]


def more(order=range(SEQUENCES)):
    """Returns 7 more tokens of sequences, and their starts."""
    order = np.asarray(order)
    return np.stack([TOKENS[b, STARTS[b] : STARTS[b] + 7] for b in order]), STARTS[order]


def filled(cache, lengths):
    """Returns the keys and values of the filled slots, sequence by sequence."""
    layers = []
    for slots in (*cache.k_MSH, *cache.v_MSH):
        if isinstance(slots, decoding.Int8Slots):
            slots = slots.values_MSH * slots.scales_MS[:, :, None]
        by_head = np.asarray(slots).reshape(-1, SEQUENCES, *slots.shape[1:])
        layers += [by_head[:, b, :length] for b, length in enumerate(lengths)]
    return layers


@pytest.mark.parametrize(
    "name",
    ["linear", pytest.param("llama3", marks=pytest.mark.slow), "multi-query", "top query"],
)
def test_prefill_and_extend_are_the_prefill_of_the_whole(name):
    config = CONFIGS[name]
    model = model_of(config)
    family, weights = family_of(config), model.decoding_weights
    ends = STARTS + LENGTHS
    whole_BT = np.where(np.arange(CAPACITY)[None] < ends[:, None], TOKENS, 0)
    whole = functools.partial(decoding.prefill, config, new_slots=0)
    logits_BV, cache = jax.jit(whole)(weights, whole_BT, ends)
    extend = jax.jit(functools.partial(family.extend, config))
    last_BV, after = extend(weights, begun(config, "none", weights), *more(), LENGTHS)
    assert np.ptp(logits_BV) > 2
    np.testing.assert_allclose(last_BV, logits_BV, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(filled(after, ends), filled(cache, ends), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


VARIANTS = {
    "dynamic": (dataclasses.replace(LLAMA, rope_type="dynamic", **SCALED), "int8", "none"),
    "multi-query": (GPT, "int8", "int4"),
    "int8 weights": (LLAMA, "none", "int8"),
}


@pytest.mark.parametrize(
    "name", ["dynamic", "multi-query", pytest.param("int8 weights", marks=pytest.mark.slow)]
)
def test_extend_is_as_many_steps(name):
    """In any order of the sequences, one that only pads the list included."""
    config, kv_cache, scheme = VARIANTS[name]
    weights, family = model_of(config, kv_cache, scheme).decoding_weights, family_of(config)
    before = begun(config, kv_cache, weights)
    by_steps = jax.jit(functools.partial(Family.extend, family, config))
    expected_BTV, cache = by_steps(weights, before, *more())
    order, slots = np.array([2, 0, 0]), np.array([2, 0, SEQUENCES])
    extend = jax.jit(functools.partial(family.extend, config))
    logits_RTV, after = extend(weights, before, *more(order), slots_R=slots)
    np.testing.assert_allclose(logits_RTV[:2], expected_BTV[order[:2]], rtol=1e-3, atol=1e-3)
    lengths = (STARTS + 7) * [1, 0, 1]
    for ours, theirs in zip(filled(after, lengths), filled(cache, lengths), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max(initial=1))
    # The sequence that is not named keeps its slots.
    for ours, theirs in zip(filled(after, [0, CAPACITY, 0]), filled(before, [0, CAPACITY, 0])):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_mesh_extends_as_one_device():
    config = CONFIGS["linear"]
    params, extend = params_of(config), functools.partial(family_of(config).extend, config)
    weights = model_of(config).decoding_weights
    cache = begun(config, "none", weights)
    expected_BTV, _ = jax.jit(extend)(weights, cache, *more())
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    shapes = abstract_params(config, mesh)
    placed = jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), params, shapes)
    with on_mesh_of(placed, decoding.LOGICAL_AXES):
        weights = TrainedModel(config, placed, None, "toy").decoding_weights
        cache = jax.device_get(cache)
        logits_BTV, after = jax.jit(extend)(weights, cache, *more())
    assert not jax.tree.leaves(after)[0].sharding.is_fully_replicated
    np.testing.assert_allclose(logits_BTV, expected_BTV, rtol=1e-4, atol=1e-4)
