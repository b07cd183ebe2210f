"""The optimizer, and the train step: a pure function of state and batch, compiled for a mesh."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codellama_jax.checked import FieldError
from codellama_jax.config import ModelConfig, OptimizerConfig, Stage
from codellama_jax.models.family import boxed_params, family_of
from codellama_jax.models.trained import placed_shapes
from codellama_jax.sharding.mesh import ROWS, batch_sharding, check_sharded, on_mesh
from codellama_jax.training.objectives import OBJECTIVES

BATCH_DTYPES = {  # of the arrays [B, T] of a batch
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "weights": jnp.float32,
}


@struct.dataclass
class TrainState:
    step: jax.Array
    params: dict
    opt_state: optax.OptState


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns step -> rate: step 0 takes the first part of the warm-up, the last step ends at `final_fraction` of the peak."""
    cosine = optax.warmup_cosine_decay_schedule(
        0.0,
        config.peak_lr,
        config.warmup_steps,
        max(steps, config.warmup_steps + 1),
        config.peak_lr * config.final_fraction,
    )
    return lambda step: cosine(step + 1)


def decayed(model: ModelConfig, params: dict) -> dict:
    """Returns True for each parameter that weight decay applies to, as the model's family says."""
    family = family_of(model)

    def applies(path: tuple, _: jax.Array) -> bool:
        return family.decays(jax.tree_util.keystr(path, simple=True, separator="."))

    return jax.tree_util.tree_map_with_path(applies, params)


def make_optimizer(stage: Stage) -> optax.GradientTransformation:
    """Clips by the global norm, then AdamW.

    See Code Llama, section 2.2; what it leaves open is Llama 2's.
    """
    config = stage.optimizer
    adamw = optax.adamw(
        learning_rate(config, stage.steps),
        config.b1,
        config.b2,
        config.eps,
        weight_decay=config.weight_decay,
        mask=functools.partial(decayed, stage.model),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def with_fresh_optimizer(stage: Stage, params: dict) -> TrainState:
    """Adds the optimiser's first state to parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(stage).init(params))


def boxed_state(stage: Stage, seed: int) -> TrainState:
    """Returns a fresh state whose parameters still carry their logical axes."""
    return with_fresh_optimizer(stage, boxed_params(stage.model, jax.random.key(seed)))


@functools.lru_cache(maxsize=16)
def abstract_state(stage: Stage, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, without allocating it.

    A stage is traced once: equal stages, such as those of another seed, share the result.
    """
    state = placed_shapes(jax.eval_shape(lambda: boxed_state(stage, 0)), mesh)
    check_sharded(state.params, jax.tree.map(lambda a: a.sharding, state.params), mesh)
    return state


def check_memory(stage: Stage, mesh: Mesh) -> None:
    """Raises UserError where a step needs more memory than the devices have, whatever XLA does.

    Counted are only the state, its gradient, and the input of every layer of one micro-batch, which
    every rematerialization policy keeps. A stage that passes may still not fit.
    """
    if not stage.steps:
        return
    limit = _device_memory(mesh)
    with on_mesh(mesh):
        state = abstract_state(stage, mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"] * stage.micro_batches
    tokens = stage.data.batch_size * stage.data.seq_len // (rows * mesh.shape["context"])
    width = stage.model.d_model * jnp.dtype(stage.model.compute_dtype).itemsize
    activations = tokens * width * stage.model.n_layers
    needed = _shard_bytes(state) + _shard_bytes(state.params) + activations
    if limit and needed > limit:
        problem = (
            f" is too large: a step needs at least {needed / 1e9:,.1f} GB per device, of them"
            f" {activations / 1e9:,.1f} for activations, and a device has {limit / 1e9:,.1f} GB;"
            " take fewer rows (data.batch_size, micro_batches), a smaller model or more devices"
        )
        raise FieldError(("model",), problem)


def _shard_bytes(tree: object) -> int:
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def _device_memory(mesh: Mesh) -> int:
    """Returns the bytes of a device of this host, 0 if unknown. CPU devices share the machine's."""
    devices = mesh.local_devices
    if devices[0].platform != "cpu":
        return (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    except (ValueError, OSError):  # not on this operating system
        return 0


def init_state(stage: Stage, mesh: Mesh, seed: int) -> TrainState:
    """Draws the initial state, every device only its own part; the same numbers on every mesh."""
    placed = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh))
    return jax.jit(lambda: nn.unbox(boxed_state(stage, seed)), out_shardings=placed)()


def fresh_state(stage: Stage, mesh: Mesh, params: dict) -> TrainState:
    """Returns the state that starts a stage from given parameters."""
    placed = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh))
    return jax.jit(lambda p: with_fresh_optimizer(stage, p), out_shardings=placed)(params)


def train_step(
    stage: Stage, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update, and the numbers of the step.

    Gradients of the micro-batches are summed and divided by the weights of all their tokens, so
    that tokens of equal weight count the same. The numbers are the loss (nats per token), the
    gradient norm before clipping, the learning rate, and `tokens`, the sum of the weights.
    """
    model, n = family_of(stage.model).module(stage.model), stage.micro_batches
    objective = OBJECTIVES[stage.objective]
    loss_and_gradient = jax.value_and_grad(
        lambda params, rows: objective(model, params, rows), has_aux=True
    )

    def accumulate(total, rows):
        (loss, tokens), gradient = loss_and_gradient(state.params, rows)
        return jax.tree.map(jnp.add, total, (loss, tokens, gradient)), None

    rows = {k: batch[k] for k in BATCH_DTYPES}
    if n == 1:
        (loss, tokens), gradient = loss_and_gradient(state.params, rows)
    else:  # every n-th row, so that no row leaves its device
        split = lambda a: a.reshape(-1, n, a.shape[1]).swapaxes(0, 1)
        rows = {
            k: nn.with_logical_constraint(split(v), (None, "batch", "length"))
            for k, v in rows.items()
        }
        zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        (loss, tokens, gradient), _ = jax.lax.scan(accumulate, zeros, rows)
    gradient = jax.tree.map(lambda g: g / tokens, gradient)
    updates, opt_state = make_optimizer(stage).update(gradient, state.opt_state, state.params)
    metrics = {
        "loss": loss / tokens,
        "gradient_norm": optax.global_norm(gradient),
        "learning_rate": learning_rate(stage.optimizer, stage.steps)(state.step),
        "tokens": tokens,
        "stop": jnp.max(batch["stop"]),
    }
    return TrainState(
        state.step + 1, optax.apply_updates(state.params, updates), opt_state
    ), metrics


def compile_train_step(stage: Stage, mesh: Mesh) -> Callable:
    """Returns the jitted step `(state, batch) -> (state, metrics)`; the state given is used up."""
    placed = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh))
    batch = {k: batch_sharding(mesh) for k in BATCH_DTYPES} | {
        "stop": NamedSharding(mesh, PartitionSpec(ROWS))
    }
    step = lambda state, rows: train_step(stage, state, rows)
    return jax.jit(
        step, in_shardings=(placed, batch), out_shardings=(placed, None), donate_argnums=0
    )


def compile_eval_step(stage: Stage, mesh: Mesh) -> Callable:
    """Returns the jitted `(params, batch) -> (weighted sum of losses, sum of weights)`."""
    placed = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh)).params
    model, objective = family_of(stage.model).module(stage.model), OBJECTIVES[stage.objective]
    step = lambda params, rows: objective(model, params, rows)
    return jax.jit(step, in_shardings=(placed, batch_sharding(mesh)))
