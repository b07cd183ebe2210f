"""Names, shapes and logical axes of a model's parameters."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from codellama_jax.config import ModelConfig
from codellama_jax.models.family import boxed_params

STACKED = "layers"  # the part of the parameters that is stacked over the layers


# Cached: tracing the module takes much longer than a look-up, and every tensor needs one.
@functools.cache
def parameters(model: ModelConfig) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """Returns the shape and the logical axes of every parameter, by dotted name.

    The first axis of a stacked parameter is L.
    """
    described = {}
    # A boxed parameter holds its logical axes. eval_shape traces without computing any value.
    boxed = jax.eval_shape(lambda: boxed_params(model, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )
    for path, leaf in leaves:
        described[dotted(path)] = (leaf.value.shape, leaf.names)
    return described


def dotted(path: tuple) -> str:
    """Returns the dotted name of a parameter, given its path in the tree."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def is_stacked(param: str) -> bool:
    """Returns whether a parameter, given its dotted name, is stacked over the layers."""
    return param.startswith(f"{STACKED}.")
