"""Quantized models of both families: logits, prefill and decoding, meshes, scoring, the cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from characters import Characters
from published import random_params

from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.generation.quantize import quantized
from codellama_jax.generation.scoring import last_logits
from codellama_jax.generation.settings import Quantization, QuantizationOptions
from codellama_jax.generation.speed import cache_bytes, weight_bytes
from codellama_jax.models import decoding
from codellama_jax.models.family import family_of
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.trained import TrainedModel, abstract_params
from codellama_jax.sharding.mesh import make_mesh, on_mesh_of

GPT = GPTConfig(
    64,
    d_model=32,
    n_layers=1,
    n_heads=4,
    n_kv_heads=1,
    head_dim=8,
    d_ff=128,
    compute_dtype="float32",
    remat="none",
    tied_embeddings=True,
    n_positions=64,
    init_std=0.15,
    top_query=True,
)
CONFIGS = {"llama": toy.MODEL, "gpt": GPT}
# The largest difference of a logit from full precision, beside logits of standard deviation 1.
# Rows of 32 inputs, so that few rounding errors average out.
BOUNDS = {"int8": 0.06, "w8a8": 0.12, "int4": 1.2}
# Activations that differ in the last bit may round to neighbouring int8 values.
AGREES = {"int8": 2e-5, "w8a8": 0.03, "int4": 2e-5}
CACHE_BOUND = 0.06
TOKENS = np.random.default_rng(0).integers(3, 64, (2, 16)).astype(np.int32)
LENGTHS = np.array([9, 16], np.int32)


@functools.cache
def full(name: str) -> TrainedModel:
    params = jax.tree.map(jnp.asarray, random_params(CONFIGS[name]))
    return TrainedModel(CONFIGS[name], params, Characters(), "toy")


@functools.cache
def model_of(name: str, scheme: str, kv_cache: str = "none") -> TrainedModel:
    return quantized(full(name), Quantization(scheme, kv_cache))


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefilled(config, kv_cache, weights, tokens_BT, lengths_B):
    return decoding.prefill(config, weights, tokens_BT, lengths_B, 16, kv_cache)


@functools.partial(jax.jit, static_argnums=0)
def stepped(config, weights, cache, tokens_B, positions_B):
    return family_of(config).step(config, weights, cache, tokens_B, positions_B)


def logits_of(model: TrainedModel) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits_BV of `LENGTHS` tokens: all read at once, and the last one by a step."""
    with on_mesh_of(model.params, decoding.LOGICAL_AXES):
        weights = model.decoding_weights
        start = functools.partial(prefilled, model.config, model.kv_cache, weights, TOKENS)
        at_once_BV, _ = start(LENGTHS)
        _, cache = start(LENGTHS - 1)
        last_B = TOKENS[np.arange(2), LENGTHS - 1]
        step_BV, _ = stepped(model.config, weights, cache, last_B, LENGTHS - 1)
    return np.asarray(at_once_BV), np.asarray(step_BV)


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("llama", "int8"), ("llama", "w8a8"), ("llama", "int4"), ("gpt", "w8a8"), ("gpt", "int4")],
)
def test_logits_are_near_and_prefill_and_decoding_agree(name, scheme):
    expected, _ = logits_of(full(name))
    assert 0.5 < expected.std() < 2
    at_once, step = logits_of(model_of(name, scheme))
    assert 1e-4 < largest_difference(at_once, expected) < BOUNDS[scheme]
    assert largest_difference(at_once, step) < AGREES[scheme]


@pytest.mark.parametrize(("name", "scheme"), [("llama", "w8a8"), ("gpt", "int4")])
def test_scoring_and_prefill_agree(name, scheme):
    model = model_of(name, scheme)
    prompts = [row[:length].tolist() for row, length in zip(TOKENS, LENGTHS)]
    scored = last_logits(model, prompts, 1)[:, 0]
    assert largest_difference(logits_of(model)[0], scored) < AGREES[scheme]


@pytest.mark.parametrize(("name", "scheme"), [("llama", "int4"), ("gpt", "w8a8")])
def test_a_mesh_changes_nothing(name, scheme):
    expected, model = logits_of(model_of(name, scheme)), full(name)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    shapes = abstract_params(model.config, mesh)
    placed = jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), model.params, shapes)
    sharded = quantized(dataclasses.replace(model, params=placed), Quantization(scheme))
    for actual, one_device in zip(logits_of(sharded), expected):
        np.testing.assert_allclose(actual, one_device, atol=AGREES[scheme])
    # Also the scales of sharded outputs are sharded.
    up = sharded.params["layers"]["ffn"]["gate_up" if name == "llama" else "up"]
    first = sharded.decoding_weights.layers[0]
    for weight in (up, first.gate_up_XFD if name == "llama" else first.up_FD):
        for array in jax.tree.leaves(weight):
            assert not array.sharding.is_fully_replicated


@pytest.mark.parametrize("name", CONFIGS)
def test_an_int8_cache_is_near_and_smaller(name):
    plain, small = full(name), model_of(name, "none", "int8")
    (at_once, expected), (same_at_once, step) = logits_of(plain), logits_of(small)
    assert (at_once == same_at_once).all()
    assert 1e-5 < largest_difference(step, expected) < CACHE_BOUND
    H = plain.config.head_dim
    assert cache_bytes(small) / cache_bytes(plain) == (H + 4) / (4 * H)


def test_slots_are_rounded_by_token_and_head():
    a_MSH = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    a_MSH[0, 0], a_MSH[1] = 0, a_MSH[1] * 100
    slots = decoding.Int8Slots.of(jnp.asarray(a_MSH))
    scales_MS1 = np.asarray(slots.scales_MS)[..., None]
    assert (np.abs(slots.values_MSH * scales_MS1 - a_MSH) <= 0.5001 * scales_MS1).all()
    expected_MS1 = np.abs(a_MSH).max(-1, keepdims=True) / 127
    np.testing.assert_allclose(scales_MS1, np.where(expected_MS1, expected_MS1, 1), rtol=1e-6)


def on_grid(model: TrainedModel, most: int) -> TrainedModel:
    """Returns the model with weights k / 64 whose rows all have `most` as their largest k."""
    inputs = family_of(model.config).matmul_inputs
    rng = np.random.default_rng(0)

    def leaf(path, w):
        if path[-1].key not in inputs:
            return w
        k = rng.integers(-most, most + 1, w.shape)
        # The first input of every output, after the dim of the stacked layers.
        first = (slice(None),) * (path[0].key == "layers") + (0,) * inputs[path[-1].key]
        k[first] = most
        return jnp.asarray(k / 64, jnp.float32)

    params = jax.tree_util.tree_map_with_path(leaf, model.params)
    return dataclasses.replace(model, params=params)


def greedy(model: TrainedModel, count: int) -> list[list[int]]:
    """Returns the most likely tokens after the prompts, one by one."""
    weights, tokens = model.decoding_weights, []
    logits_BV, cache = prefilled(model.config, "none", weights, TOKENS, LENGTHS)
    for number in range(count):
        tokens.append(np.argmax(logits_BV, axis=-1).astype(np.int32))
        logits_BV, cache = stepped(model.config, weights, cache, tokens[-1], LENGTHS + number)
    return np.stack(tokens, axis=1).tolist()


@pytest.mark.parametrize(
    ("name", "scheme", "most"), [("llama", "int8", 127), ("llama", "int4", 7), ("gpt", "int4", 7)]
)
def test_weights_that_a_scheme_holds_exactly_give_the_same_tokens(name, scheme, most):
    model = on_grid(full(name), most)
    exact = quantized(model, Quantization(scheme))
    assert greedy(exact, 12) == greedy(model, 12)
    down = jax.tree.map(lambda a: a[0], exact.params["layers"]["ffn"]["down"])
    assert (down.dequantized() == model.params["layers"]["ffn"]["down"][0].T).all()


def test_a_quantized_model_is_smaller_and_named(monkeypatch):
    model = model_of("llama", "w8a8")
    assert model.name == "toy, w8a8 weights" and full("llama").name == "toy"
    assert weight_bytes(model) < weight_bytes(full("llama")) / 2
    assert model_of("llama", "none", "int8").name == "toy, int8 cache"
    family = family_of(model.config)
    monkeypatch.setattr(type(family), "matmul_inputs", {})
    with pytest.raises(UserError, match=r"--quantize int8: the weights of the family llama cannot"):
        quantized(full("llama"), Quantization("int8"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int5"}, "--quantize is 'int5': it must be one of none, int8, w8a8, int4"),
        ({"quantize": ""}, "--quantize is '': it must be one of"),
        ({"quantize": "int8,int8"}, "--quantize is 'int8,int8': it must be a list that names"),
        ({"kv_cache": "int4"}, "--kv-cache is 'int4': it must be one of none, int8"),
        ({"speculate": 33}, "--speculate is 33: it must be a whole number from 0 to 32"),
        ({"draft_model": "small"}, "--draft-model small has no effect without --speculate K"),
    ],
)
def test_a_mistake_names_the_option(options, message):
    with pytest.raises(UserError) as raised:
        QuantizationOptions(**options)
    assert str(raised.value).startswith(message)


def test_only_evaluate_takes_several_schemes():
    options = QuantizationOptions(quantize="none,int4")
    assert options.all() == [Quantization(), Quantization("int4")]
    with pytest.raises(UserError, match="--quantize is 'none,int4': it must be one of"):
        options.single()
