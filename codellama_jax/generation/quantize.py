"""Quantizes a trained model: the weights of its layers' matmuls, and the cache of its decoding.

All schemes leave the embedding, the output head, norms and biases as they are. So do CodeGeeX's
INT8 and GPTQ; CTranslate2 quantizes the embedding and the head too. `int4` rounds to the nearest
value: GPTQ needs calibration data and libraries for CUDA.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from codellama_jax.errors import UserError
from codellama_jax.generation.settings import Quantization
from codellama_jax.models.family import family_of
from codellama_jax.models.parameters import STACKED
from codellama_jax.models.quantized import quantize_parameter
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import on_mesh_of


def quantized(model: TrainedModel, quantization: Quantization) -> TrainedModel:
    """Returns the model with quantized weights, and a cache of its type. `model` does not change.

    Training code never sees it: its parameters can be read by prefill, decoding and scoring only.
    Raises UserError for a family whose weights cannot be quantized.
    """
    if quantization == Quantization():
        return model
    # The new name keeps samples of the quantized model apart from those of the original.
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

    # Matmul weights are recognised by the name of the leaf, one level below their layer. Norms,
    # biases and the embedding have other names or no parent, and stay in the training dtype.
    def leaf(path: tuple[Any, ...], w: jax.Array) -> Any:
        names = [getattr(key, "key", "") for key in path]
        if len(names) < 2 or names[-1] not in inputs:
            return w
        # A stacked leaf has a leading layer dim, over which no scale may be shared.
        is_stacked = names[0] == STACKED
        return quantize_parameter(quantization.weights, inputs[names[-1]], is_stacked, w)

    # Under the model's mesh the quantized leaves inherit the sharding of the originals.
    with on_mesh_of(model.params):
        params = jax.tree_util.tree_map_with_path(leaf, model.params)
    return dataclasses.replace(model, params=params)
