"""The programs to compile: the train step of `run`, prefill and decoding, as shapes on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.config import ModelConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models import decoding
from codellama_jax.models.family import family_of
from codellama_jax.models.trained import abstract_params
from codellama_jax.sharding.mesh import check_mesh, on_mesh
from codellama_jax.training.step import BATCH_DTYPES, abstract_state, compile_train_step
from kernels import UnsupportedError


def lower_train_step(stage: Stage, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the train step of a stage.

    Raises:
      UserError: if the mesh does not divide the model or the batch, or if a kernel does not support
        the chip.
    """
    B, T = stage.data.batch_size, stage.data.seq_len
    check_mesh(mesh, stage.model, B, stage.micro_batches, T)
    batch = {key: jax.ShapeDtypeStruct((B, T), dtype) for key, dtype in BATCH_DTYPES.items()}
    # The same arrays as in `training/loop.py`: another batch would be another program.
    batch["stop"] = jax.ShapeDtypeStruct((B,), jnp.int32)
    with on_mesh(mesh):
        try:
            return compile_train_step(stage, mesh).lower(abstract_state(stage, mesh), batch)
        except UnsupportedError as refusal:
            raise UserError(str(refusal)) from refusal


def abstract_weights(model: ModelConfig, mesh: Mesh) -> Any:
    """Returns the weights that prefill and decoding read, as sharded shapes."""
    family, params = family_of(model), abstract_params(model, mesh)
    # Shapes stand for the weights everywhere here: 70B would not fit the memory of a host.
    weights = jax.eval_shape(lambda p: family.prepare(model, p), params)

    def place(a: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return placed(mesh, a.shape, a.dtype, spec)

    return jax.tree.map(place, weights, family.weight_specs(model))


def placed(mesh: Mesh, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> Any:
    """Returns an array on the mesh as a shape."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def lower_prefill(model: ModelConfig, batch: int, context: int, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the reading of `batch` prompts of `context` tokens into a cache.

    Prompts are sharded as sequences in training are: over fsdp too, and each over the context axis.
    The engine shards them over data only.
    """
    model.check_length("--context", context)
    model = dataclasses.replace(model, remat="none")
    tokens_BT = jax.ShapeDtypeStruct((batch, context), jnp.int32)
    lengths_B = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def prefill(weights: Any, tokens_BT: jax.Array, lengths_B: jax.Array) -> tuple:
        # No room for new tokens: only the cost of reading is of interest.
        return decoding.prefill(model, weights, tokens_BT, lengths_B, 0)

    with on_mesh(mesh):
        return jax.jit(prefill).lower(abstract_weights(model, mesh), tokens_BT, lengths_B)


def lower_decode(model: ModelConfig, batch: int, context: int, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers one decoding step after `context` tokens, its cache sharded as prefill leaves it."""
    model.check_length("--context", context)
    model = dataclasses.replace(model, remat="none")
    family = family_of(model)

    def step(weights: Any, cache: decoding.Cache, tokens_B: jax.Array, positions_B: jax.Array):
        return family.step(model, weights, cache, tokens_B, positions_B)

    # Decoding shards differently from training and prefill here: no weight is ever gathered.
    with on_mesh(mesh, decoding.LOGICAL_AXES):
        # A full cache: every step reads all of it, which is what limits decoding at long contexts.
        shape = (model.n_kv_heads * batch, context, model.head_dim)
        slots = placed(mesh, shape, model.compute_dtype, decoding.cache_spec(model))
        layers = (slots,) * family.attention_layers(model)
        cache = decoding.Cache(layers, layers)
        ids_B = placed(mesh, (batch,), jnp.int32, decoding.REPLICATED)
        weights = abstract_weights(model, mesh)
        # Donated as in the engine; otherwise the estimate would hold two caches.
        return jax.jit(step, donate_argnums=1).lower(weights, cache, ids_B, ids_B)
