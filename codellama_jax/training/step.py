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
from codellama_jax.models import lora
from codellama_jax.models.family import boxed_params, family_of
from codellama_jax.models.parameters import dotted
from codellama_jax.models.trained import abstract_params, placed_shapes
from codellama_jax.sharding.mesh import ROWS, batch_sharding, check_sharded, on_mesh
from codellama_jax.training.objectives import OBJECTIVES, SUMS, Sums

# The arrays (B, T) of a batch and their dtypes.
BATCH_DTYPES = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "weights": jnp.float32,
}


class TrainState(struct.PyTreeNode):
    """Everything that a checkpoint holds of a stage in progress, except the data's position.

    Args:
      step: int32 scalar, number of updates so far.
      params: fp32 parameters that train: all, or those of the adapters (`Stage.lora`).
      opt_state: state of the optimizer, with two fp32 moments per parameter.
      frozen: the parameters that adapters are added to, {} without adapters. No checkpoint holds
        them.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    frozen: dict = struct.field(default_factory=dict)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the function from a step to its learning rate: linear warm-up, then cosine decay.

    Args:
      config: peak rate, warm-up steps, and where the cosine begins and ends.
      steps: number of steps of the stage.
    """
    # A stage shorter than its warm-up only warms up.
    end = max(config.decay_steps or steps, config.warmup_steps + 1)
    if config.cosine_from == "zero":
        warmup = optax.linear_schedule(0.0, config.peak_lr, config.warmup_steps)
        decay = optax.cosine_decay_schedule(config.peak_lr, end, config.final_fraction)
    else:
        cosine = optax.warmup_cosine_decay_schedule(
            0.0, config.peak_lr, config.warmup_steps, end, config.peak_lr * config.final_fraction
        )

    def rate(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        # Optax starts the warm-up at 0. One step later, step 0 already learns, and the last step,
        # `steps` - 1, has the final rate.
        number = step + 1
        if config.cosine_from == "zero":
            is_warm = jnp.asarray(number) >= config.warmup_steps
            return jnp.where(is_warm, decay(number), warmup(number))
        return cosine(number)

    return rate


def decayed(model: ModelConfig, params: dict) -> dict:
    """Returns a tree of bool: whether weight decay applies to each parameter.

    The model's family decides; norms are exempt.
    """
    family = family_of(model)

    def applies(path: tuple, _: jax.Array) -> bool:
        return family.decays(jax.tree_util.keystr(path, simple=True, separator="."))

    return jax.tree_util.tree_map_with_path(applies, params)


def make_optimizer(stage: Stage) -> optax.GradientTransformation:
    """Returns the optimizer of a stage: gradients clipped by their global norm, then AdamW.

    The defaults of `OptimizerConfig` are those of Code Llama (Roziere et al. 2023, section 2.2).
    Settings that the paper does not give are those of Llama 2 (Touvron et al. 2023, section 2.2).
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
    # Clipping comes first: AdamW divides by the gradient's own scale, after which a norm would mean
    # nothing.
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def with_fresh_optimizer(stage: Stage, params: dict) -> TrainState:
    """Returns the state at step 0 with the given parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(stage).init(params))


def boxed_state(stage: Stage, seed: int) -> TrainState:
    """Returns the state at step 0 with random parameters, still in boxes with their logical axes.

    With adapters it lacks the frozen parameters.

    The optimizer's moments get the same boxes, and with them the shardings of their parameters.
    """
    key = jax.random.key(seed)
    if stage.lora.rank is not None:
        return with_fresh_optimizer(stage, lora.boxed_adapters(stage.model, stage.lora, key))
    return with_fresh_optimizer(stage, boxed_params(stage.model, key))


@functools.lru_cache(maxsize=16)
def abstract_state(stage: Stage, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of a stage's state, without allocating it.

    The result is cached, because tracing a large model takes seconds. Call it within `on_mesh`.

    Raises:
      UserError: if the mesh leaves too many parameters replicated.
    """
    state = placed_shapes(jax.eval_shape(lambda: boxed_state(stage, 0)), mesh)
    if stage.lora.rank is not None:
        # Adapters are so small that a replicated one costs nothing.
        return state.replace(frozen=abstract_frozen(stage, mesh))
    check_sharded(state.params, jax.tree.map(lambda a: a.sharding, state.params), mesh)
    return state


def abstract_frozen(stage: Stage, mesh: Mesh) -> dict:
    """Returns shapes, dtypes and shardings of the parameters that adapters are added to.

    Raises UserError if the mesh leaves too many of them replicated.
    """
    freeze = lora.freezer(stage.model, stage.lora)
    params = abstract_params(stage.model, mesh)
    with on_mesh(mesh):
        return jax.tree_util.tree_map_with_path(lambda path, w: freeze(dotted(path), w), params)


def check_memory(stage: Stage, mesh: Mesh) -> None:
    """Raises UserError if a train step certainly needs more memory than a device has.

    It counts only the state, its gradient, and the input of every layer of one micro-batch, which
    every rematerialization policy keeps. A stage that passes may still not fit.
    """
    # A stage without steps allocates no gradient and no activations.
    if not stage.steps:
        return
    limit = _device_memory(mesh)
    with on_mesh(mesh):
        state = abstract_state(stage, mesh)
    # Data, fsdp and micro-batches split the sequences of a batch, and context splits their length.
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * stage.micro_batches * mesh.shape["context"]
    tokens = stage.data.batch_size * stage.data.seq_len // parts
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
    """Returns the bytes of a tree of shapes with shardings on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def _device_memory(mesh: Mesh) -> int:
    """Returns the memory of a device of this host in bytes, 0 if unknown.

    CPU devices share the memory of the machine evenly.
    """
    devices = mesh.local_devices
    if devices[0].platform != "cpu":
        return (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    except (ValueError, OSError):  # this operating system does not report its memory
        return 0


def init_state(stage: Stage, mesh: Mesh, seed: int) -> TrainState:
    """Returns the state at step 0 with parameters, or adapters, drawn from `seed`.

    Every device draws only its shard. The numbers are the same on every mesh. With adapters, the
    frozen parameters are missing: the caller loads them.
    """

    def draw() -> TrainState:
        return nn.unbox(boxed_state(stage, seed))

    placed = _state_shardings(stage, mesh).replace(frozen={})
    # Under jit with output shardings no device ever holds a full parameter.
    return jax.jit(draw, out_shardings=placed)()


def fresh_state(stage: Stage, mesh: Mesh, params: dict) -> TrainState:
    """Returns the state at step 0 of a stage that starts from given parameters."""
    start = functools.partial(with_fresh_optimizer, stage)
    return jax.jit(start, out_shardings=_state_shardings(stage, mesh))(params)


def _state_shardings(stage: Stage, mesh: Mesh) -> TrainState:
    """Returns the sharding of each array of the state."""
    return jax.tree.map(lambda array: array.sharding, abstract_state(stage, mesh))


def train_step(
    stage: Stage, seed: int, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update, and the metrics of the step.

    The gradients of the micro-batches are summed and divided by the sum of all loss weights, so
    that a token of weight 1 counts the same in every micro-batch.

    Args:
      stage: the stage.
      seed: of dropout; its keys are a function of the seed and the step.
      state: the state before the update.
      batch: the arrays of BATCH_DTYPES, and int32 `stop` (B,), a flag per sequence.

    Returns:
      The state, and fp32 scalars: `loss` in nats per token, `gradient_norm` before clipping,
      `learning_rate`, `tokens` (the sum of the loss weights), and `stop`, the largest flag. Of a
      ranked objective losses are in nats per pair, `tokens` counts pairs, and `rank_loss` and
      `tuning_loss` are the parts of `loss`.
    """
    objective = _objective(stage)

    def loss_of(params: dict, arrays: dict, key: jax.Array | None) -> tuple[jax.Array, Sums]:
        # Frozen parameters are constants here: no gradient of them is computed.
        return objective(with_frozen(stage, params, state.frozen), arrays, key)

    loss_and_gradient = jax.value_and_grad(loss_of, has_aux=True)

    key = None
    arrays = {name: batch[name] for name in BATCH_DTYPES}
    if stage.model.has_dropout():
        # A function of the step, so that a resumed run drops what an uninterrupted one would.
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        # Numbers in the global batch, which micro-batches and devices carry along.
        arrays["sequences"] = jnp.arange(stage.data.batch_size)

    def accumulate(total, micro_batch):
        (loss, sums), gradient = loss_and_gradient(state.params, micro_batch, key)
        return jax.tree.map(jnp.add, total, (loss, sums, gradient)), None

    if stage.micro_batches == 1:
        (loss, sums), gradient = loss_and_gradient(state.params, arrays, key)
    else:
        parts = {name: _split(array, stage.micro_batches) for name, array in arrays.items()}
        # A scan holds the activations of one micro-batch at a time; the sums are fp32.
        sums = dict.fromkeys(SUMS[stage.objective], jnp.zeros(()))
        zeros = (jnp.zeros(()), sums, jax.tree.map(jnp.zeros_like, state.params))
        (loss, sums, gradient), _ = jax.lax.scan(accumulate, zeros, parts)
    # A batch of parts of questions has no weight at all, and then no gradient.
    tokens = jnp.maximum(sums.pop("tokens"), jnp.finfo(jnp.float32).tiny)
    # The gradient of the mean over all tokens. On a mesh, XLA has summed it over the devices.
    gradient = jax.tree.map(lambda g: g / tokens, gradient)
    updates, opt_state = make_optimizer(stage).update(gradient, state.opt_state, state.params)
    metrics = {
        "loss": loss / tokens,
        **{name: total / tokens for name, total in sums.items()},
        "gradient_norm": optax.global_norm(gradient),
        "learning_rate": learning_rate(stage.optimizer, stage.steps)(state.step),
        "tokens": tokens,
        "stop": jnp.max(batch["stop"]),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, state.frozen), metrics


def with_frozen(stage: Stage, params: dict, frozen: dict) -> dict:
    """Returns the parameters that the module computes with: those that train, and frozen ones."""
    if stage.lora.rank is None:
        return params
    return lora.joined(stage.model, stage.lora, frozen, params)


def _objective(stage: Stage) -> Callable[..., tuple[jax.Array, Sums]]:
    """Returns the stage's objective as a function of the parameters and a batch."""
    model = family_of(stage.model).module(stage.model)
    return functools.partial(OBJECTIVES[stage.objective], model)


def _split(array_BT: jax.Array, parts: int) -> jax.Array:
    """Returns (parts, B / parts, T) micro-batches, or (parts, B / parts) of an array (B,).

    A micro-batch takes every `parts`-th sequence. Each device then keeps an equal number of its
    sequences in every micro-batch, and no sequence moves to another device.
    """
    split = array_BT.reshape(-1, parts, *array_BT.shape[1:]).swapaxes(0, 1)
    return nn.with_logical_constraint(split, (None, "batch", "length")[: split.ndim])


def compile_train_step(stage: Stage, mesh: Mesh, seed: int = 0) -> jax.stages.Wrapped:
    """Returns `train_step` as a jitted function (state, batch) -> (state, metrics).

    `seed` is that of dropout. Programs without dropout are the same for every seed.

    The buffers of the old state are reused for the new one: the caller must not read it again.
    """
    state = _state_shardings(stage, mesh)
    batch = {key: batch_sharding(mesh) for key in BATCH_DTYPES}
    # One flag per sequence, so that the flags are sharded like the sequences they come with.
    batch["stop"] = NamedSharding(mesh, PartitionSpec(ROWS))
    # The stage is a constant of the compiled program. The sharding of the metrics is left to XLA.
    step = functools.partial(train_step, stage, seed)
    return jax.jit(step, in_shardings=(state, batch), out_shardings=(state, None), donate_argnums=0)


def compile_eval_step(stage: Stage, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted objective, (params, batch) -> (weighted sum of losses, sum of weights).

    With adapters it takes the pair of them and the frozen parameters in the place of `params`.
    """
    state, objective = _state_shardings(stage, mesh), _objective(stage)

    def evaluate(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        loss, sums = objective(params, batch)
        return loss, sums["tokens"]

    if stage.lora.rank is None:
        return jax.jit(evaluate, in_shardings=(state.params, batch_sharding(mesh)))

    def adapted(pair: tuple[dict, dict], batch: dict) -> tuple[jax.Array, jax.Array]:
        return evaluate(with_frozen(stage, *pair), batch)

    pair = (state.params, state.frozen)
    return jax.jit(adapted, in_shardings=(pair, batch_sharding(mesh)))
