"""Mesh axes, and the one table from logical axes to them.

data     copies of the model; slices of a multi-slice pod
fsdp     parameters and optimizer state, sharded along the model width; sequences of the batch
context  the length of a sequence
tensor   heads, ffn width and vocabulary
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

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
UNSHARDED_LIMIT = 0.02  # of the parameters, on a mesh that could shard them


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Returns devices along each axis, -1 filled in.

    Raises UserError where the product is not the number of devices.
    """
    shape = [config.data, config.fsdp, config.context, config.tensor]
    given = math.prod(n for n in shape if n != -1)
    named = ", ".join(f"{a}={n}" for a, n in zip(AXES, shape))
    if devices % given or (-1 not in shape and given != devices):
        needed = f"a multiple of {given}" if -1 in shape else f"{given}"
        problem = f"needs {needed} devices and there are {devices}"
        raise UserError(f"mesh {named} {problem}: change --mesh.*")
    return tuple(devices // given if n == -1 else n for n in shape)


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Lays the devices out along the four axes; `data` spans the slices where there are several."""
    devices = devices or jax.devices()
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if shape[0] % slices:
        problem = f"mesh data={shape[0]} does not divide over {slices} slices"
        raise UserError(f"{problem}: pass --mesh.data={slices}")
    if slices > 1:
        inner, outer = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_mesh(
    mesh: Mesh,
    model: ModelConfig,
    batch_size: int,
    micro_batches: int,
    seq_len: int,
) -> None:
    """Raises UserError where an axis does not divide the dimension that it shards in training.

    Args:
      mesh: of all devices.
      model: the model of the stage.
      batch_size: sequences per step, over all hosts.
      micro_batches: parts that a batch is split into.
      seq_len: tokens per sequence.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % micro_batches or (batch_size // micro_batches) % rows:
        problem = (
            f" is {batch_size}: {batch_size} rows in {micro_batches} micro-batches do not divide"
            f" over data x fsdp = {rows} devices; make it a multiple of {rows * micro_batches}"
        )
        raise FieldError(("data", "batch_size"), problem)
    check_cuts(mesh, model, "seq_len", seq_len)


def check_cuts(mesh: Mesh, model: ModelConfig, row: str, length: int) -> None:
    """Raises UserError where an axis does not divide the model or `length`, named `row`."""
    cuts = (
        ("fsdp", "d_model", model.d_model),
        ("tensor", "d_ff", model.d_ff),
        ("tensor", "vocab_size", model.vocab_size),
        ("context", row, length),
    )
    for axis, name, size in cuts:
        if size % mesh.shape[axis]:
            problem = f"{name} {size} does not divide over {axis}={mesh.shape[axis]}"
            raise UserError(f"{problem}: change --mesh.{axis}")


def check_attention(mesh: Mesh, model: ModelConfig) -> None:
    """Raises UserError where the config's attention cannot train on packed rows on this mesh."""
    platform = mesh.devices.flat[0].platform
    reasons = {}
    for name in flash_attention.IMPLEMENTATIONS:
        reasons[name] = flash_attention.refusal(name, platform, model.compute_dtype)
        if mesh.shape["context"] > 1 and name not in ring_attention.IMPLEMENTATIONS:
            reasons[name] = "it cannot split rows over context"
    if model.attention and reasons[model.attention]:
        able = ", ".join(name for name, why in reasons.items() if not why)
        problem = f" is {model.attention!r}: {reasons[model.attention]}; use one of {able}, or ''"
        raise FieldError(("model", "attention"), f"{problem} for the best")


@contextlib.contextmanager
def on_mesh(mesh: Mesh, logical_axes: LogicalAxes = LOGICAL_AXES) -> Iterator[Mesh]:
    """Makes the mesh and a table of logical axes current."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(logical_axes):
        yield mesh


def on_mesh_of(
    params: dict, logical_axes: LogicalAxes = LOGICAL_AXES
) -> contextlib.AbstractContextManager:
    """Makes the mesh of the parameters current; without one, nothing changes."""
    sharding = jax.tree.leaves(params)[0].sharding
    return (
        on_mesh(sharding.mesh, logical_axes)
        if isinstance(sharding, NamedSharding)
        else contextlib.nullcontext()
    )


def shardings(boxed: object, mesh: Mesh) -> object:
    """Returns a NamedSharding for every leaf of a tree whose parameters carry logical axes.

    A dimension that its mesh axes do not divide is replicated, such as one key head.
    """
    placed = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, LOGICAL_AXES)

    def divided(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
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
    """Rows over data and fsdp, length over context."""
    return NamedSharding(mesh, PartitionSpec(ROWS, "context"))


def loss_specs() -> dict[str, PartitionSpec]:
    """Returns how the current mesh shards tokens (B, T) and the output head (D, V)."""
    return {
        "tokens": nn.logical_to_mesh_axes(("batch", "length")),
        "head": nn.logical_to_mesh_axes(("embed", "vocab")),
    }


def check_sharded(params: object, params_shardings: object, mesh: Mesh) -> None:
    """Raises UserError if `fsdp`, which shards every matrix, leaves over 2 % replicated."""
    if mesh.shape["fsdp"] == 1:
        return
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(params_shardings)))
    total = sum(p.size for p, _ in pairs)
    replicated = sum(p.size for p, s in pairs if s.is_fully_replicated)
    if replicated > UNSHARDED_LIMIT * total:
        problem = f"{replicated / total:.0%} of the parameters are not sharded by this mesh"
        raise UserError(f"{problem} (limit {UNSHARDED_LIMIT:.0%}): change --mesh.*")
