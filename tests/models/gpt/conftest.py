"""Small GPT models: multi-head, multi-query, and CodeGeeX's with a top query layer."""

import dataclasses

import pytest

from codellama_jax.models.gpt.config import GPTConfig

MULTI_HEAD = GPTConfig(
    64,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    d_ff=256,
    compute_dtype="float32",
    remat="none",
    tied_embeddings=True,
    n_positions=64,
    init_std=0.1,
)
MODELS = {
    "multi_head": MULTI_HEAD,
    "multi_query": dataclasses.replace(MULTI_HEAD, n_kv_heads=1, tied_embeddings=False),
    "top_query": dataclasses.replace(MULTI_HEAD, top_query=True, activation="quick_gelu"),
}


@pytest.fixture(params=MODELS)
def model(request) -> GPTConfig:
    return MODELS[request.param]


@pytest.fixture
def multi_head() -> GPTConfig:
    return MULTI_HEAD


@pytest.fixture
def multi_query() -> GPTConfig:
    return MODELS["multi_query"]


@pytest.fixture
def top_query() -> GPTConfig:
    return MODELS["top_query"]
