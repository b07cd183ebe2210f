"""Mesh axes, and the one table that says on which of them each logical axis lies.

data     copies of the model; slices of a multi-slice pod
fsdp     parameters and optimiser state cut along the model width; rows of the batch as well
context  the length of a row
tensor   heads, ffn width and vocabulary
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from codellama_jax.config import MeshConfig, ModelConfig
from codellama_jax.errors import UserError
from kernels import flash_attention, ring_attention

AXES = ("data", "fsdp", "context", "tensor")
ROWS = ("data", "fsdp")  # the axes that share out the rows of a batch

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
    """Returns devices along each axis, -1 filled in. Raises UserError where the product is not the number of devices."""
    shape = [config.data, config.fsdp, config.context, config.tensor]
    given = math.prod(n for n in shape if n != -1)
    named = ", ".join(f"{a}={n}" for a, n in zip(AXES, shape))
    if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise UserError(f"mesh {named}: every axis is a positive number, and at most one is -1 (what is left)")
    if devices % given or (-1 not in shape and given != devices):
        raise UserError(
            f"mesh {named} needs {'a multiple of ' if -1 in shape else ''}{given} devices and there are {devices}: change --mesh.*"
        )
    return tuple(devices // given if n == -1 else n for n in shape)


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Lays the devices out along the four axes; `data` spans the slices where there are several."""
    devices = devices or jax.devices()
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if shape[0] % slices:
        raise UserError(f"mesh data={shape[0]} does not divide over {slices} slices: pass --mesh.data={slices}")
    if slices > 1:
        inner, outer = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_mesh(mesh: Mesh, model: ModelConfig, batch_size: int, micro_batches: int, seq_len: int) -> None:
    """Raises UserError where an axis does not divide what it cuts in training."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % micro_batches or (batch_size // micro_batches) % rows:
        raise UserError(
            f"a batch of {batch_size} rows in {micro_batches} micro-batches does not divide over data x fsdp = {rows} devices:"
            f" make batch_size a multiple of {rows * micro_batches}"
        )
    check_cuts(mesh, model, "seq_len", seq_len)


def check_cuts(mesh: Mesh, model: ModelConfig, row: str, length: int) -> None:
    """Raises UserError where an axis does not divide the model or the length of a row, which is called `row`."""
    cuts = (
        ("fsdp", "d_model", model.d_model),
        ("tensor", "n_kv_heads", model.n_kv_heads),
        ("tensor", "d_ff", model.d_ff),
        ("tensor", "vocab_size", model.vocab_size),
        ("context", row, length),
    )
    for axis, name, size in cuts:
        if size % mesh.shape[axis]:
            raise UserError(f"{name} {size} does not divide over {axis}={mesh.shape[axis]}: change --mesh.{axis}")


def check_attention(mesh: Mesh, model: ModelConfig) -> None:
    """Raises UserError where the attention that a config names cannot train on packed rows on this mesh."""
    platform, cut = mesh.devices.flat[0].platform, mesh.shape["context"] > 1
    reasons = {name: flash_attention.refusal(name, platform, model.compute_dtype) for name in flash_attention.IMPLEMENTATIONS}
    if cut:
        reasons |= {name: "it cannot split rows over context" for name in reasons if name not in ring_attention.IMPLEMENTATIONS}
    if model.attention and (reason := reasons.get(model.attention, "there is none of that name")):
        able = ", ".join(name for name, why in reasons.items() if not why)
        raise UserError(f"attention {model.attention!r}: {reason}; use one of {able}, or '' for the best")


@contextlib.contextmanager
def on_mesh(mesh: Mesh, logical_axes: LogicalAxes = LOGICAL_AXES) -> Iterator[Mesh]:
    """Makes the mesh and a table of logical axes current."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(logical_axes):
        yield mesh


def on_mesh_of(params: dict, logical_axes: LogicalAxes = LOGICAL_AXES) -> contextlib.AbstractContextManager:
    """Makes the mesh that parameters lie on current; where they lie on none, nothing changes."""
    sharding = jax.tree.leaves(params)[0].sharding
    return on_mesh(sharding.mesh, logical_axes) if isinstance(sharding, NamedSharding) else contextlib.nullcontext()


def shardings(boxed: object, mesh: Mesh) -> object:
    """Returns a NamedSharding for every leaf of a tree whose parameters carry logical axes."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, LOGICAL_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp, length over context."""
    return NamedSharding(mesh, PartitionSpec(ROWS, "context"))


def check_sharded(params: object, params_shardings: object, mesh: Mesh) -> None:
    """Raises UserError if more than 2 % of the parameters are whole on every device of a mesh that could cut them."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(params_shardings)))
    total, whole = sum(p.size for p, _ in pairs), sum(p.size for p, s in pairs if s.is_fully_replicated)
    if whole > UNSHARDED_LIMIT * total:
        raise UserError(
            f"{whole / total:.0%} of the parameters are not sharded by this mesh (limit {UNSHARDED_LIMIT:.0%}): change --mesh.*"
        )
