"""Random models and tokenizers of any size, that the tests of weights share."""

import functools
import inspect
import random
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import toy
from sentencepiece import sentencepiece_model_pb2

from codellama_jax.config import ModelConfig
from codellama_jax.models.family import family_of
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.tokenizers.training import train_model
from codellama_jax.weights.layout import Source, is_stacked, places, split

TEXT = inspect.getsource(random)
PIECES = 500
UNUSED = 5  # a type of piece that no text becomes
MODEL = replace(
    toy.MODEL, vocab_size=PIECES + 16, rope_theta=1e6, n_heads=8, head_dim=4, n_kv_heads=4
)


@functools.cache
def trained() -> tokenizers.SentencePieceTokenizer:
    return tokenizers.read(train_model([TEXT], PIECES), "trained")


@functools.cache
def tokenizer(pieces: int = PIECES) -> tokenizers.SentencePieceTokenizer:
    """Returns a small trained tokenizer, filled up to a number of pieces."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained().model)
    for row in range(PIECES, pieces):
        proto.pieces.add(piece=f"<filler{row}>", type=UNUSED)
    return tokenizers.read(proto.SerializeToString(), "filled")


@functools.cache
def random_params(model: ModelConfig, seed: int = 0) -> dict:
    """Returns parameters large enough that all count in the logits, norms and biases included."""
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    init = jax.jit(family_of(model).module(model).init)
    drawn = nn.unbox(init(jax.random.key(seed), tokens_BT, tokens_BT)["params"])
    keys = iter(jax.random.split(jax.random.key(seed + 1), 100))

    def noisy(path, a):
        return (
            a + 0.3 * jax.random.normal(next(keys), a.shape)
            if path[-1].key.endswith(("scale", "bias"))
            else a
        )

    return jax.device_get(jax.tree_util.tree_map_with_path(noisy, drawn))


def source_of(
    params: dict, model: ModelConfig, context: int = 64, dtype: str = "float32"
) -> Source:
    """Returns parameters in memory as a source."""

    def read(name, layer, index):
        param = places(model)[name].param
        array = functools.reduce(dict.__getitem__, param.split("."), params)
        array = array[layer] if is_stacked(param) else array
        return split(model, name, lambda where: array[where])[index].astype(jnp.dtype(dtype))

    return Source("memory", model, context, dict.fromkeys(places(model), jnp.dtype(dtype)), read)


def assert_same(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
