"""The bytes that the checks of memory count are those that every device allocates."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from characters import Characters
from toy import MODEL, bytes_by_device

from codellama_jax.config import MeshConfig, ModelConfig
from codellama_jax.generation import slots as programs
from codellama_jax.generation.batches import bytes_per_device
from codellama_jax.generation.quantize import quantized
from codellama_jax.generation.settings import Quantization
from codellama_jax.models import decoding
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.trained import TrainedModel, abstract_params
from codellama_jax.sharding.mesh import make_mesh, on_mesh

MULTI_QUERY = GPTConfig(
    64, 32, 2, 4, 1, 8, 64, compute_dtype="float32", remat="none", n_positions=128
)
MESHES = {
    "fsdp": MeshConfig(),
    "fsdp and tensor": MeshConfig(fsdp=4, tensor=2),
    "all": MeshConfig(data=2, context=2, tensor=2, fsdp=1),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kv_cache", decoding.KV_CACHES)
@pytest.mark.parametrize("config", [MODEL, MULTI_QUERY], ids=["llama", "multi-query"])
def test_of_a_cache(config: ModelConfig, kv_cache: str, mesh: str):
    with on_mesh(make_mesh(MESHES[mesh]), decoding.LOGICAL_AXES):
        state = programs.empty(config, kv_cache, 4, 64)
        size = bytes_per_device(state, programs.state_specs(config))
        assert bytes_by_device(state) == [size] * 8


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("scheme", ["none", "w8a8", "int4"])
def test_of_weights(scheme: str, mesh: str):
    config = dataclasses.replace(MODEL, d_model=256)
    on = make_mesh(MESHES[mesh])
    params = jax.tree.map(
        lambda shape: jax.device_put(jnp.ones(shape.shape, shape.dtype), shape.sharding),
        abstract_params(config, on),
    )
    model = quantized(TrainedModel(config, params, Characters(), "toy"), Quantization(scheme))
    with on_mesh(on, decoding.LOGICAL_AXES):
        weights = decoding.prepare(config, model.params)
        size = bytes_per_device(weights, decoding.weight_specs(config, weights))
        assert bytes_by_device(weights) == [size] * 8
