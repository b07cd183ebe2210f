"""Quantizes a trained model: the weights of its layers' matmuls, and the cache of its decoding.

All schemes leave the embedding, the output head, norms and biases as they are. So do CodeGeeX's
INT8 and GPTQ; CTranslate2 quantizes the embedding and the head too. `int4` rounds to the nearest
value: GPTQ needs calibration data and libraries for CUDA.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from codellama_jax.errors import UserError
from codellama_jax.generation.settings import Quantization
from codellama_jax.models.family import family_of
from codellama_jax.models.quantized import SCHEMES
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import on_mesh_of

# Parts of the parameters with layers; those under `layers` are stacked along a leading dim.
STACKED = "layers"


def quantized(model: TrainedModel, quantization: Quantization) -> TrainedModel:
    """Returns the model with quantized weights, and a cache of its type. `model` does not change.

    Training code never sees it: its parameters can be read by prefill, decoding and scoring only.
    Raises UserError for a family whose weights cannot be quantized.
    """
    if quantization == Quantization():
        return model
    name = quantization.named(model.name)
    model = dataclasses.replace(model, kv_cache=quantization.kv_cache, name=name)
    if quantization.weights == "none":
        return model
    inputs = family_of(model.config).matmul_inputs
    if not inputs:
        family = model.config.family
        raise UserError(
            f"--quantize {quantization.weights}: the weights of the family {family} cannot be"
            " quantized; leave the option out"
        )

    def leaf(path: tuple[Any, ...], w: jax.Array) -> Any:
        names = [getattr(key, "key", "") for key in path]
        if len(names) < 2 or names[-1] not in inputs:
            return w
        return _weight(quantization.weights, inputs[names[-1]], names[0] == STACKED, w)

    with on_mesh_of(model.params):
        params = jax.tree_util.tree_map_with_path(leaf, model.params)
    return dataclasses.replace(model, params=params)


def _weight(scheme: str, inputs: int, is_stacked: bool, w: jax.Array) -> Any:
    """Quantizes one parameter, (L, *I, *X) if `is_stacked` and (*I, *X) otherwise."""
    spec: tuple[Any, ...] = ()
    if isinstance(w.sharding, NamedSharding):
        spec = tuple(w.sharding.spec)
    spec = (*spec, *(None,) * (w.ndim - len(spec)))
    leading, spec = (spec[:1], spec[1:]) if is_stacked else ((), spec)
    # The inputs are flattened: those after the first are never sharded.
    return _quantize(scheme, inputs, leading, PartitionSpec(*spec[inputs:], spec[0]), w)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _quantize(
    scheme: str, inputs: int, leading: tuple[Any, ...], spec: PartitionSpec, w: jax.Array
) -> Any:
    """Returns a quantized parameter.

    Args:
      scheme: a key of `SCHEMES`.
      inputs: number of input dims of `w`, which come first.
      leading: the axes that shard a stack of layers; empty for a single layer.
      spec: the PartitionSpec of one layer's output-major weight, (*X, I).
      w: the parameter.
    """

    def quantize(w: jax.Array) -> Any:
        rows = w.reshape(-1, *w.shape[inputs:])
        return SCHEMES[scheme](jax.numpy.moveaxis(rows, 0, -1))

    weight = jax.vmap(quantize)(w) if leading else quantize(w)
    if jax.sharding.get_abstract_mesh().size <= 1:
        return weight
    layer = jax.eval_shape(quantize, w[0]) if leading else weight
    specs = jax.tree.map(
        lambda axes: PartitionSpec(*leading, *axes),
        layer.specs(spec),
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )
    return jax.lax.with_sharding_constraint(weight, specs)
