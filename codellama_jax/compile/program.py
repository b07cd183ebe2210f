"""The programs to compile: the train step that `run` would start, and prefill and decoding, as shapes on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from codellama_jax.config import ModelConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.llama import decoder
from codellama_jax.models.llama.model import Llama
from codellama_jax.sharding.mesh import check_mesh, on_mesh, shardings
from codellama_jax.training.step import BATCH_DTYPES, abstract_state, compile_train_step
from kernels import UnsupportedError


def lower_train_step(stage: Stage, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the step of a stage. Raises UserError where the mesh does not divide it, or a kernel cannot run on the chip."""
    B, T = stage.data.batch_size, stage.data.seq_len
    check_mesh(mesh, stage.model, B, stage.micro_batches, T)
    batch = {key: jax.ShapeDtypeStruct((B, T), dtype) for key, dtype in BATCH_DTYPES.items()}
    batch["stop"] = jax.ShapeDtypeStruct((B,), jnp.int32)
    with on_mesh(mesh):
        try:
            return compile_train_step(stage, mesh).lower(abstract_state(stage, mesh), batch)
        except UnsupportedError as refusal:
            raise UserError(str(refusal)) from refusal


def abstract_params(model: ModelConfig, mesh: Mesh) -> dict:
    """Returns the parameters as shapes in the compute dtype, sharded as for training."""
    tokens_BT = jax.ShapeDtypeStruct((1, 2), jnp.int32)  # no array: there is no device to hold it
    init = lambda tokens_BT: Llama(model).init(jax.random.key(0), tokens_BT, tokens_BT)["params"]
    plain, placed = (
        jax.eval_shape(lambda t: nn.unbox(init(t)), tokens_BT),
        shardings(jax.eval_shape(init, tokens_BT), mesh),
    )
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, model.compute_dtype, sharding=s), plain, placed
    )


def lower_prefill(model: ModelConfig, batch: int, context: int, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the reading of `batch` prompts of `context` tokens into a cache."""
    model = dataclasses.replace(model, remat="none")
    with on_mesh(mesh):
        params = abstract_params(model, mesh)
        tokens_BT, lengths_B = (
            jax.ShapeDtypeStruct((batch, context), jnp.int32),
            jax.ShapeDtypeStruct((batch,), jnp.int32),
        )
        return jax.jit(
            lambda p, tokens, lengths: decoder.prefill(model, p, tokens, lengths, 0)
        ).lower(params, tokens_BT, lengths_B)


def lower_decode(model: ModelConfig, batch: int, context: int, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers one step of decoding after `context` tokens, the cache cut by heads as prefill leaves it."""
    model = dataclasses.replace(model, remat="none")
    shape = lambda dims, dtype, spec: jax.ShapeDtypeStruct(
        dims, dtype, sharding=NamedSharding(mesh, spec)
    )
    with on_mesh(mesh, decoder.LOGICAL_AXES):
        weights = jax.eval_shape(lambda p: decoder.prepare(model, p), abstract_params(model, mesh))
        weights = jax.tree.map(
            lambda a, spec: shape(a.shape, a.dtype, spec), weights, decoder.layout(model)
        )
        slots = shape(
            (model.n_kv_heads * batch, context, model.head_dim), model.compute_dtype, decoder.CACHE
        )
        cache = decoder.Cache(*((slots,) * model.n_layers,) * 2)
        rows = shape((batch,), jnp.int32, decoder.WHOLE)
        step: Callable = lambda w, c, tokens, positions: decoder.step(
            model, w, c, tokens, positions
        )
        return jax.jit(step, donate_argnums=1).lower(weights, cache, rows, rows)
