"""A tiny untrained model with a real tokenizer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from tiny_model import SOURCES

from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel
from codellama_jax.tokenizers import sentencepiece as tokenizers


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TrainedModel:
    tokenizer = tokenizers.train(SOURCES, 400, tmp_path_factory.mktemp("tokenizers"))
    config = dataclasses.replace(toy.MODEL, vocab_size=tokenizer.vocab_size)
    zeros, rng = jnp.zeros((1, 4), jnp.int32), np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(Llama(config).init, jax.random.key(0), zeros, zeros)["params"])
    return TrainedModel(
        config,
        jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape), jnp.float32), shapes),
        tokenizer,
        "toy",
    )
