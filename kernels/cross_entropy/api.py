"""The loss of a language model's head; its implementations agree with `reference.py`."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kernels.cross_entropy import pallas_tpu, xla
from kernels.cross_entropy.block_sizes import largest
from kernels.tpu import platform, vmem_bytes

IMPLEMENTATIONS = {"pallas_tpu": pallas_tpu, "xla": xla}
REPLICATED = PartitionSpec(None, None)


def cross_entropy(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    implementation: str = "",
    tokens: PartitionSpec = REPLICATED,
    head: PartitionSpec = REPLICATED,
) -> jax.Array:
    """Returns the sum over tokens of weight x -log softmax(x @ head)[target], in nats, fp32.

    The (tokens x vocabulary) logits are never in memory at once. Matmuls run in x's dtype and
    accumulate in fp32. All inputs but the targets have gradients.

    Args:
      x_BTD: activations.
      head_DV: output embedding.
      targets_BT: int32 ids.
      weights_BT: fp32 weight of each token's loss; 0 leaves a token out.
      implementation: a key of `IMPLEMENTATIONS`; "" takes the fastest that works here.
      tokens, head: how the mesh in use (`jax.set_mesh`) shards (B, T) and (D, V). The axes that
        shard D are among those that shard the tokens; those that shard V are not. Without a mesh
        they have no effect.

    Raises:
      ValueError: for an unknown implementation.
    """
    layout = _layout(x_BTD, head_DV, implementation, tokens, head)
    return _cross_entropy(x_BTD, head_DV, targets_BT, weights_BT, layout)


def token_losses(
    x_BTD, head_DV, targets_BT, *, implementation="", tokens=REPLICATED, head=REPLICATED
) -> jax.Array:
    """Returns -log softmax(x @ head)[target]_BT of each token, without a gradient.

    Args:
      x_BTD, head_DV, targets_BT, implementation, tokens, head: as in `cross_entropy`.
    """
    layout = _layout(x_BTD, head_DV, implementation, tokens, head)
    return _losses(x_BTD, head_DV, targets_BT, layout)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Static arguments of a call. The axes are those of the mesh that shard each dimension."""

    implementation: str
    tokens: PartitionSpec
    head: PartitionSpec
    token_axes: tuple[str, ...]
    embed_axes: tuple[str, ...]
    vocab_axes: tuple[str, ...]

    @property
    def functions(self):
        """The module of the implementation."""
        return IMPLEMENTATIONS[self.implementation]


def default_implementation(x_BTD: jax.Array, head_DV: jax.Array) -> str:
    """Returns the fastest implementation that works here.

    The compiler cannot partition a Pallas kernel over devices by itself: on several devices it
    needs a mesh, over which `_sharded` partitions it.
    """
    partitioned = not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1
    if platform() != "tpu" or not partitioned:
        return "xla"
    itemsizes = x_BTD.dtype.itemsize, head_DV.dtype.itemsize
    return "pallas_tpu" if largest(x_BTD.shape[-1], *itemsizes, vmem_bytes()) else "xla"


def _layout(x_BTD, head_DV, implementation, tokens, head) -> _Layout:
    implementation = implementation or default_implementation(x_BTD, head_DV)
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"no cross-entropy {implementation!r}; choose one of {names}")
    token_axes = _mesh_axes(tokens[0]) + _mesh_axes(tokens[1])
    return _Layout(
        implementation, tokens, head, token_axes, _mesh_axes(head[0]), _mesh_axes(head[1])
    )


def _mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the axes of a PartitionSpec's entry along which the mesh has several devices."""
    sizes = jax.sharding.get_abstract_mesh().shape
    names = (entry,) if isinstance(entry, str) else entry or ()
    return tuple(name for name in names if sizes.get(name, 1) > 1)


def _sharded(function, layout: _Layout, *out_specs: PartitionSpec):
    """Runs `function` of x_BTD, head_DV, targets_BT and weights_BT on each device's shard."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    x_spec = PartitionSpec(*layout.tokens, None)
    in_specs = (x_spec, layout.head, layout.tokens, layout.tokens)
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _local_inputs(x_BTD, head_DV, targets_BT, layout: _Layout):
    """Returns the inputs of an implementation: x_TD, a head with full D, and targets_T.

    The targets count from the first column of this device's shard of the vocabulary.
    """
    if layout.embed_axes:
        # Cast before gathering: half the bytes.
        head_DV = jax.lax.all_gather(
            head_DV.astype(x_BTD.dtype), layout.embed_axes, axis=0, tiled=True
        )
    first_column = 0
    if layout.vocab_axes:
        first_column = jax.lax.axis_index(layout.vocab_axes) * head_DV.shape[1]
    return x_BTD.reshape(-1, x_BTD.shape[-1]), head_DV, targets_BT.reshape(-1) - first_column


def _losses(x_BTD, head_DV, targets_BT, layout: _Layout):
    def local(x_BTD, head_DV, targets_BT, _):
        inputs = _local_inputs(x_BTD, head_DV, targets_BT, layout)
        losses_T = layout.functions.losses(*inputs, layout.vocab_axes)
        return (losses_T.reshape(targets_BT.shape),)

    return _sharded(local, layout, layout.tokens)(x_BTD, head_DV, targets_BT, targets_BT)[0]


def _losses_and_gradients(x_BTD, head_DV, targets_BT, weights_BT, layout: _Layout):
    """Returns losses_BT, dx_BTD and dhead_DV, the last in fp32."""

    def local(x_BTD, head_DV, targets_BT, weights_BT):
        inputs = _local_inputs(x_BTD, head_DV, targets_BT, layout)
        losses_T, dx_TD, dhead_DV = layout.functions.losses_and_gradients(
            *inputs, weights_BT.reshape(-1), layout.vocab_axes
        )
        # The head's gradient sums over all devices that hold other tokens. Along the axes that
        # shard D each device keeps its own part of the sum.
        if layout.embed_axes:
            dhead_DV = jax.lax.psum_scatter(
                dhead_DV, layout.embed_axes, scatter_dimension=0, tiled=True
            )
        other_axes = tuple(a for a in layout.token_axes if a not in layout.embed_axes)
        if other_axes:
            dhead_DV = jax.lax.psum(dhead_DV, other_axes)
        return losses_T.reshape(targets_BT.shape), dx_TD.reshape(x_BTD.shape), dhead_DV

    out_specs = layout.tokens, PartitionSpec(*layout.tokens, None), layout.head
    return _sharded(local, layout, *out_specs)(x_BTD, head_DV, targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(x_BTD, head_DV, targets_BT, weights_BT, layout: _Layout):
    return jnp.sum(_losses(x_BTD, head_DV, targets_BT, layout) * weights_BT)


def _forward(x_BTD, head_DV, targets_BT, weights_BT, layout: _Layout):
    arrays = (x_BTD, head_DV, targets_BT, weights_BT)
    losses_BT, dx_BTD, dhead_DV = _losses_and_gradients(*arrays, layout)
    residuals = (losses_BT, dx_BTD, dhead_DV.astype(head_DV.dtype))
    return jnp.sum(losses_BT * weights_BT), residuals


def _backward(_, residuals, g):
    losses_BT, dx_BTD, dhead_DV = ((a * g).astype(a.dtype) for a in residuals)
    # The derivative by a token's weight is its loss.
    return dx_BTD, dhead_DV, np.zeros(losses_BT.shape, jax.dtypes.float0), losses_BT


_cross_entropy.defvjp(_forward, _backward)
