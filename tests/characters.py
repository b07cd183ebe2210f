"""An untrained model whose tokens are characters, so that texts of any length are easy to write."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import toy

from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel


class Characters:
    """A tokenizer of one id per character, as far as documents and prompts need one."""

    bos_id, eos_id = 1, 2

    def encode(self, text: str) -> list[int]:
        return [3 + ord(c) % 60 for c in text]

    def prompt(self, text: str) -> list[int]:
        return [self.bos_id, *self.encode(text)]


def untrained() -> TrainedModel:
    """Returns a model whose weights are large enough that context counts."""
    zeros, rng = jnp.zeros((1, 4), jnp.int32), np.random.default_rng(0)
    init = Llama(toy.MODEL).init
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0), zeros, zeros)["params"])
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape), jnp.float32), shapes)
    return TrainedModel(toy.MODEL, params, Characters(), "toy")


def texts(*lengths: int) -> list[str]:
    """Returns random texts of which `plain_ids` makes length + 1 ids: that many predictions."""
    rng = np.random.default_rng(3)
    return ["".join(map(chr, rng.integers(65, 120, length - 1))) for length in lengths]
