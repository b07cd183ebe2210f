"""The axes of the mesh, and the one table from logical axes to mesh axes.

Each mesh axis shards:

data     the sequences of a batch; every slice of a multi-slice pod has copies of the parameters
fsdp     the sequences of a batch, and parameters and optimizer state along the width of the model
context  the length of a sequence
tensor   heads, the width of the feed-forward layer, and the vocabulary

Models name logical axes (`embed`, `heads`); LOGICAL_AXES is the only place that maps them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, TypedDict

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from codellama_jax.checked import FieldError
from codellama_jax.config import MeshConfig, ModelConfig
from codellama_jax.errors import UserError
from kernels import flash_attention, ring_attention

AXES = ("data", "fsdp", "context", "tensor")
ROWS = ("data", "fsdp")  # the axes that the sequences of a batch are sharded over

LogicalAxes = tuple[tuple[str, str | tuple[str, ...] | None], ...]
LOGICAL_AXES: LogicalAxes = (
    ("batch", ROWS),
    ("length", "context"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("ffn", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
    ("norm", None),
)
UNSHARDED_LIMIT = 0.02  # largest fraction of the parameters that a mesh may leave replicated


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Returns the number of devices along each axis; an axis of -1 takes all that remain.

    Raises:
      UserError: if the axes do not multiply to the number of devices.
    """
    shape = [config.data, config.fsdp, config.context, config.tensor]
    # At most one axis may be -1, and it takes what the other axes leave.
    given = math.prod(size for size in shape if size != -1)
    is_exact = -1 not in shape
    if devices % given or (is_exact and given != devices):
        needed = f"{given}" if is_exact else f"a multiple of {given}"
        axes = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape))
        problem = f"needs {needed} devices and there are {devices}"
        raise UserError(f"mesh {axes} {problem}: change --mesh.*")
    return tuple(devices // given if size == -1 else size for size in shape)


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Returns a mesh of the devices along the four axes.

    Args:
      config: devices along each axis.
      devices: the devices; None takes all devices of all hosts.

    Raises:
      UserError: for axes that do not fit the number of devices or of slices.
    """
    devices = devices or jax.devices()
    shape = mesh_shape(config, len(devices))
    # The chips of a slice are linked to each other; slices share only the network of the data
    # center.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        problem = f"mesh data={shape[0]} does not divide over {slices} slices"
        raise UserError(f"{problem}: pass --mesh.data={slices}")
    if slices > 1:
        # The network between slices is slow, so only `data` spans them: it communicates once per
        # step, when the gradients are summed.
        inner, outer = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    else:
        # Orders the devices so that neighbours on a mesh axis are neighbours in the pod's torus,
        # where collectives are fastest.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_mesh(
    mesh: Mesh,
    model: ModelConfig,
    batch_size: int,
    micro_batches: int,
    seq_len: int,
) -> None:
    """Raises UserError if an axis does not divide a dimension that it shards in training.

    Args:
      mesh: mesh of all devices.
      model: the model of the stage.
      batch_size: sequences per step, over all hosts.
      micro_batches: parts that a batch is split into.
      seq_len: tokens per sequence.
    """
    # Every micro-batch must give each of these devices the same number of sequences.
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % micro_batches or (batch_size // micro_batches) % rows:
        problem = (
            f" is {batch_size}: {batch_size} sequences in {micro_batches} micro-batches do not"
            f" divide over data x fsdp = {rows} devices;"
            f" make it a multiple of {rows * micro_batches}"
        )
        raise FieldError(("data", "batch_size"), problem)
    check_divides(mesh, model, "seq_len", seq_len)


def check_divides(mesh: Mesh, model: ModelConfig, length_name: str, length: int) -> None:
    """Raises UserError if an axis does not divide a dimension of the model, or the length.

    Args:
      mesh: mesh of all devices.
      model: the model.
      length_name: name of the length in the message.
      length: number that the context axis must divide.
    """
    # Activations need equal shards of these. Heads are not listed: where the mesh does not divide
    # them, they are replicated.
    dimensions = (
        ("fsdp", "d_model", model.d_model),
        ("tensor", "d_ff", model.d_ff),
        ("tensor", "vocab_size", model.vocab_size),
        ("context", length_name, length),
    )
    for axis, name, size in dimensions:
        if size % mesh.shape[axis]:
            problem = f"{name} {size} does not divide over {axis}={mesh.shape[axis]}"
            raise UserError(f"{problem}: change --mesh.{axis}")


def check_attention(mesh: Mesh, model: ModelConfig) -> None:
    """Raises UserError if the chosen attention cannot train on packed sequences on this mesh."""
    platform = mesh.devices.flat[0].platform
    reasons = {}
    for name in flash_attention.IMPLEMENTATIONS:
        reasons[name] = flash_attention.refusal(name, platform, model.compute_dtype, model.head_dim)
        # Over several devices a sequence needs ring attention, which has fewer implementations.
        if mesh.shape["context"] > 1 and name not in ring_attention.IMPLEMENTATIONS:
            reasons[name] = "it cannot split sequences over context"
    if model.attention and reasons[model.attention]:
        able = ", ".join(name for name, reason in reasons.items() if not reason)
        problem = f" is {model.attention!r}: {reasons[model.attention]}; use one of {able}, or ''"
        raise FieldError(("model", "attention"), f"{problem} for the best")


@contextlib.contextmanager
def on_mesh(mesh: Mesh, logical_axes: LogicalAxes = LOGICAL_AXES) -> Iterator[Mesh]:
    """Makes a mesh and a table of logical axes current within the block."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(logical_axes):
        yield mesh


def on_mesh_of(
    params: dict, logical_axes: LogicalAxes = LOGICAL_AXES
) -> contextlib.AbstractContextManager:
    """Makes the mesh of the parameters current; changes nothing for parameters without a mesh."""
    # All parameters are on one mesh, so the first leaf stands for them.
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return on_mesh(sharding.mesh, logical_axes)
    return contextlib.nullcontext()


def shardings(boxed: object, mesh: Mesh) -> object:
    """Returns a NamedSharding for every leaf of a tree whose parameters carry logical axes.

    A dimension that its mesh axes do not divide is replicated, such as the single key head of
    multi-query attention.

    Args:
      boxed: shapes, or `nn.Partitioned` boxes of shapes.
      mesh: mesh of all devices.
    """
    placed = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, LOGICAL_AXES)

    def divided(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
        # An entry of a spec is None, the name of a mesh axis, or several names.
        spec = list(sharding.spec)
        for axis, names in enumerate(spec):
            group = (names,) if isinstance(names, str) else names or ()
            if leaf.shape[axis] % math.prod(mesh.shape[name] for name in group):
                spec[axis] = None
        return NamedSharding(mesh, PartitionSpec(*spec))

    def is_boxed(leaf: object) -> bool:
        return isinstance(leaf, nn.Partitioned)

    def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
        return leaf.value if is_boxed(leaf) else leaf

    return jax.tree.map(divided, jax.tree.map(shape_of, boxed, is_leaf=is_boxed), placed)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays (B, T): sequences over data and fsdp, length over context."""
    return NamedSharding(mesh, PartitionSpec(ROWS, "context"))


class LossSpecs(TypedDict):
    """How a mesh shards the tokens (B, T) and the output head (D, V)."""

    tokens: PartitionSpec
    head: PartitionSpec


def loss_specs() -> LossSpecs:
    """Returns the arguments of `kernels.cross_entropy` for the current mesh."""
    return LossSpecs(tokens=_spec("batch", "length"), head=_spec("embed", "vocab"))


def _spec(*logical_axes: str) -> PartitionSpec:
    """Returns the mesh axes of a dimension each; replicated without a table of logical axes."""
    return nn.logical_to_mesh_axes(logical_axes) or PartitionSpec(None, None)


def check_sharded(params: object, params_shardings: object, mesh: Mesh) -> None:
    """Raises UserError if fsdp leaves more than UNSHARDED_LIMIT of the parameters replicated.

    The fsdp axis should shard every matrix. A new parameter without logical axes would silently
    take the same memory on every device.

    Args:
      params: shapes of the parameters.
      params_shardings: their shardings.
      mesh: mesh of all devices.
    """
    # Without fsdp replication is the user's choice and no mistake.
    if mesh.shape["fsdp"] == 1:
        return
    total, replicated = 0, 0
    for param, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(params_shardings)):
        total += param.size
        replicated += param.size if sharding.is_fully_replicated else 0
    if replicated > UNSHARDED_LIMIT * total:
        problem = f"{replicated / total:.0%} of the parameters are not sharded by this mesh"
        raise UserError(f"{problem} (limit {UNSHARDED_LIMIT:.0%}): change --mesh.*")
