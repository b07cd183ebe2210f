"""CodeGeeX against a module written in torch from its published description."""

import dataclasses

import jax
import numpy as np
import pytest
from published import random_params, source_of

from codellama_jax.models.family import family_of
from codellama_jax.models.gpt.published import CODEGEEX_NAMES
from codellama_jax.weights.layout import names

torch = pytest.importorskip("torch")


def linear(weights, name, x):
    return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def layer_norm(weights, name, x):
    scale, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, 1e-5)


def fast_gelu(x):
    return x / (1 + torch.exp(-1.702 * x.abs())) * torch.exp(0.851 * (x - x.abs()))


def layer(weights, name, x, heads, queries=None):
    """A pre-norm block; in the top query layer the queries are learned vectors."""
    B, T, D = x.shape
    normed = layer_norm(weights, f"{name}.input_layernorm", x)

    def by_head(part, x):
        projected = linear(weights, f"{name}.attention.{part}", x)
        return projected.reshape(B, T, heads, D // heads).transpose(1, 2)

    q = by_head("query", normed if queries is None else queries)
    k, v = by_head("key", normed), by_head("value", normed)
    scores = q @ k.transpose(2, 3) / (D // heads) ** 0.5
    hidden = torch.ones(T, T).triu(1)
    out = torch.softmax(scores - 10_000 * hidden, -1) @ v
    x = x + linear(weights, f"{name}.attention.dense", out.transpose(1, 2).reshape(B, T, D))
    normed = layer_norm(weights, f"{name}.post_attention_layernorm", x)
    up = fast_gelu(linear(weights, f"{name}.mlp.dense_h_to_4h", normed))
    return x + linear(weights, f"{name}.mlp.dense_4h_to_h", up)


def codegeex(weights, ids, layers, heads):
    """Returns logits of ids [B, T]."""
    T = ids.shape[1]
    table = weights["embedding.word_embeddings.weight"]
    x = table[ids] + weights["embedding.position_embeddings.weight"][:T][None]
    for number in range(layers):
        x = layer(weights, f"transformer.layers.{number}", x, heads)
    x = layer_norm(weights, "transformer.final_layernorm", x)
    queries = weights["topQueryEmbedding.top_query_embeddings.weight"][:T][None]
    x = layer(weights, "transformer.topQueryLayer", x, heads, queries.expand(len(ids), -1, -1))
    return x @ table.T


def test_logits_are_those_of_the_published_description(top_query):
    model = dataclasses.replace(top_query, n_layers=3)
    params = random_params(model)
    source = source_of(params, model)
    weights = {}
    for name, number in names(model):
        weights[CODEGEEX_NAMES[name].format(number)] = torch.tensor(source.tensor(name, number))
    ids_BT = np.random.default_rng(0).integers(0, model.vocab_size, (2, 64))
    positions_BT = np.broadcast_to(np.arange(64), (2, 64))
    module = family_of(model).module(model)
    ours_BTV = jax.jit(module.apply)({"params": params}, ids_BT, positions_BT)
    theirs_BTV = codegeex(weights, torch.tensor(ids_BT), 3, model.n_heads).numpy()
    assert theirs_BTV.std() > 0.5
    np.testing.assert_allclose(ours_BTV, theirs_BTV, atol=1e-4, rtol=0)
