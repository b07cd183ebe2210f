"""Adapters: the model at first, what they add to which weights, and the ones there can be."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from lora_cases import frozen, random_adapters
from published import random_params

from codellama_jax.checked import FieldError
from codellama_jax.config import LoraConfig
from codellama_jax.models.accounting import trained_parameters
from codellama_jax.models.family import family_of
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.llama.sizes import CODE_LLAMA
from codellama_jax.models.lora import adapter_count, boxed_adapters, frozen_size, joined, merged

GPT = GPTConfig(
    64,
    d_model=32,
    n_layers=1,
    n_heads=4,
    n_kv_heads=1,
    head_dim=8,
    d_ff=64,
    n_positions=16,
    compute_dtype="float32",
    remat="none",
    top_query=True,
)
LLAMA = dataclasses.replace(toy.MODEL, n_layers=1)
ALL = {
    "llama": (LLAMA, ("q", "k", "v", "o", "gate", "up", "down")),
    "gpt": (GPT, ("q", "v", "o", "down", "top_k")),
}
TOKENS_BT = np.random.default_rng(0).integers(0, 64, (1, 8))


def logits(model, params):
    positions_BT = jnp.arange(8)[None]
    apply = jax.jit(family_of(model).module(model).apply)
    return np.asarray(apply({"params": params}, TOKENS_BT, positions_BT))


@pytest.mark.parametrize("name", ALL)
def test_new_adapters_change_nothing(name):
    model, targets = ALL[name]
    lora, params = LoraConfig(2, targets=targets), random_params(model)
    adapters = nn.unbox(boxed_adapters(model, lora, jax.random.key(0)))
    start = joined(model, lora, frozen(model, lora, params), adapters)
    np.testing.assert_array_equal(logits(model, start), logits(model, params))


@pytest.mark.parametrize(("name", "quantize_base"), [("llama", "int4"), ("gpt", "none")])
def test_merged_weights_compute_the_same(name, quantize_base):
    model, targets = ALL[name]
    lora = LoraConfig(2, targets=targets, quantize_base=quantize_base)
    params, adapters = random_params(model), random_adapters(model, lora)
    trained = joined(model, lora, frozen(model, lora, params), adapters)
    expected = logits(model, merged(model, lora, params, adapters))
    assert np.abs(expected - logits(model, params)).max() > 0.1
    np.testing.assert_allclose(logits(model, trained), expected, atol=2e-5, rtol=0)


def test_a_target_is_one_published_weight():
    """The values of a fused weight, by hand: alpha / rank x B A in their columns alone."""
    lora, params = LoraConfig(2, alpha=6.0, targets=("v",)), random_params(LLAMA)
    adapters = random_adapters(LLAMA, lora)
    qkv = merged(LLAMA, lora, params, adapters)["layers"]["attention"]["qkv"]
    pair = adapters["layers"]["attention"]["qkv"]["v"]
    change = np.asarray(qkv - params["layers"]["attention"]["qkv"])
    G = LLAMA.n_heads // LLAMA.n_kv_heads
    expected = 3 * np.einsum("LDR,LRKXH->LDKXH", pair["a"], pair["b"])
    assert (change[..., : G + 1, :] == 0).all()
    np.testing.assert_allclose(change[..., G + 1 :, :], expected, atol=1e-6)


def test_a_is_kaiming_uniform_and_b_zero():
    lora = LoraConfig(64, targets=("q", "o"))
    adapters = nn.unbox(boxed_adapters(LLAMA, lora, jax.random.key(0)))
    a = np.asarray(adapters["layers"]["attention"]["out"]["o"]["a"])
    assert a.shape == (1, 2, 2, 8, 64)
    bound = 32**-0.5
    assert 0.95 * bound < np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not np.any(adapters["layers"]["attention"]["qkv"]["q"]["b"])


def test_sizes_at_7b():
    """PEFT counts 39,976,960 trained parameters of Llama 7B with rank 16 in all matrices."""
    lora = LoraConfig(16, targets=ALL["llama"][1])
    assert adapter_count(CODE_LLAMA["7b"], lora) == 39_976_960
    stage = toy.stage(model=CODE_LLAMA["7b"], init="run:base", lora=LoraConfig(8))
    assert trained_parameters(stage) == 32 * 2 * 8 * 2 * 4096
    # The compute dtype is bfloat16; norms are float32.
    sizes = {}
    for scheme in ("none", "int8", "int4"):
        quantized = dataclasses.replace(lora, quantize_base=scheme)
        sizes[scheme] = frozen_size(CODE_LLAMA["7b"], quantized) / 1e9
    assert sizes == pytest.approx({"none": 13.48, "int8": 7.0, "int4": 3.87}, abs=0.02)


def test_targets_that_the_model_lacks():
    with pytest.raises(FieldError, match=r"lora.targets has 'query': this model has q, k, v, o, g"):
        adapter_count(LLAMA, LoraConfig(2, targets=("q", "query")))
