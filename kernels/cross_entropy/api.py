"""The cross-entropy of a language model's output head, with one choice of implementation.

The implementations agree with `reference.py`. The forward pass computes the gradients, too: while
the logits of a block exist, the gradient takes two more matmuls, and the backward pass would have
to compute the logits again.
"""

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

# Modules with the functions `losses` and `losses_and_gradients` of `xla.py`.
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
    """Returns the fp32 sum over tokens of weight x -log softmax(x @ head)[target], in nats.

    The (tokens x vocabulary) logits are never in memory at once. Matmuls run in x's dtype and
    accumulate in fp32. All inputs except the targets have gradients.

    Args:
      x_BTD: activations.
      head_DV: weights of the output head.
      targets_BT: int32 token ids.
      weights_BT: fp32 weight of each token's loss; 0 leaves a token out.
      implementation: a key of `IMPLEMENTATIONS`; "" takes the fastest that works here.
      tokens, head: how the mesh in use (`jax.set_mesh`) shards (B, T) and (D, V). The axes that
        shard D must also shard the tokens; the axes that shard V must not. Without a mesh these
        arguments have no effect.

    Raises:
      ValueError: for an unknown implementation.
    """
    layout = _layout(x_BTD, head_DV, implementation, tokens, head)
    return _cross_entropy(x_BTD, head_DV, targets_BT, weights_BT, layout)


def token_losses(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    *,
    implementation: str = "",
    tokens: PartitionSpec = REPLICATED,
    head: PartitionSpec = REPLICATED,
) -> jax.Array:
    """Returns fp32 losses_BT, -log softmax(x @ head)[target] in nats, without a gradient.

    Args:
      x_BTD, head_DV, targets_BT, implementation, tokens, head: as in `cross_entropy`.
    """
    layout = _layout(x_BTD, head_DV, implementation, tokens, head)
    return _losses(x_BTD, head_DV, targets_BT, layout)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Static arguments of a call: how its arrays are sharded, and the implementation.

    Args:
      implementation: a key of `IMPLEMENTATIONS`.
      tokens, head: as in `cross_entropy`.
      token_axes, embed_axes, vocab_axes: axes of the mesh in use that shard the tokens, D and V
        over several devices.
    """

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
    """Returns the name of the fastest implementation that works here.

    The compiler cannot partition a Pallas kernel over devices by itself. On several devices the
    kernel needs a mesh, over which `_sharded` partitions it.
    """
    is_partitioned = not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1
    if platform() != "tpu" or not is_partitioned:
        return "xla"
    # A wide model's smallest block may not fit the VMEM of a small chip.
    itemsizes = x_BTD.dtype.itemsize, head_DV.dtype.itemsize
    return "pallas_tpu" if largest(x_BTD.shape[-1], *itemsizes, vmem_bytes()) else "xla"


def _layout(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    implementation: str,
    tokens: PartitionSpec,
    head: PartitionSpec,
) -> _Layout:
    """Returns the static arguments of a call; takes those of `cross_entropy`."""
    implementation = implementation or default_implementation(x_BTD, head_DV)
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"no cross-entropy {implementation!r}; choose one of {names}")
    token_axes = _mesh_axes(tokens[0]) + _mesh_axes(tokens[1])
    return _Layout(
        implementation, tokens, head, token_axes, _mesh_axes(head[0]), _mesh_axes(head[1])
    )


def _mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the axes in an entry of a PartitionSpec along which the mesh has several devices."""
    sizes = jax.sharding.get_abstract_mesh().shape
    names = (entry,) if isinstance(entry, str) else entry or ()
    return tuple(name for name in names if sizes.get(name, 1) > 1)


def _sharded(function, layout: _Layout, *out_specs: PartitionSpec):
    """Returns a function that runs `function` on each device's shard.

    `function` takes x_BTD, head_DV, targets_BT and weights_BT; `out_specs` are of its results.
    """
    # Without a mesh the only shard is the full array.
    if jax.sharding.get_abstract_mesh().empty:
        return function
    x_spec = PartitionSpec(*layout.tokens, None)
    in_specs = (x_spec, layout.head, layout.tokens, layout.tokens)
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _local_inputs(x_BTD, head_DV, targets_BT, layout: _Layout):
    """Returns a device's inputs of an implementation: x_TD, head_DV and targets_T.

    The head is gathered along D. The targets count from the first column of this device's shard of
    the vocabulary, so a target in another shard is outside of [0, V).
    """
    if layout.embed_axes:
        # Casting from fp32 to bf16 before gathering halves the bytes that are sent.
        head_DV = jax.lax.all_gather(
            head_DV.astype(x_BTD.dtype), layout.embed_axes, axis=0, tiled=True
        )
    first_column = 0
    if layout.vocab_axes:
        # Along the axes that shard V, device i holds columns i V to (i + 1) V - 1.
        first_column = jax.lax.axis_index(layout.vocab_axes) * head_DV.shape[1]
    return x_BTD.reshape(-1, x_BTD.shape[-1]), head_DV, targets_BT.reshape(-1) - first_column


def _losses(x_BTD, head_DV, targets_BT, layout: _Layout):
    def local(x_BTD, head_DV, targets_BT, _):
        inputs = _local_inputs(x_BTD, head_DV, targets_BT, layout)
        losses_T = layout.functions.losses(*inputs, layout.vocab_axes)
        return (losses_T.reshape(targets_BT.shape),)

    # The last argument only fills the place of the weights, which the losses do not need.
    return _sharded(local, layout, layout.tokens)(x_BTD, head_DV, targets_BT, targets_BT)[0]


def _losses_and_gradients(x_BTD, head_DV, targets_BT, weights_BT, layout: _Layout):
    """Returns losses_BT, dx_BTD and dhead_DV, the last in fp32."""

    def local(x_BTD, head_DV, targets_BT, weights_BT):
        inputs = _local_inputs(x_BTD, head_DV, targets_BT, layout)
        losses_T, dx_TD, dhead_DV = layout.functions.losses_and_gradients(
            *inputs, weights_BT.reshape(-1), layout.vocab_axes
        )
        # The head's gradient is the sum over all devices that hold other tokens. Along the axes
        # that shard D, each device needs only its rows of the sum, so the sum is also scattered.
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
    # Without a gradient (in evaluation) the losses alone take one matmul instead of four.
    return jnp.sum(_losses(x_BTD, head_DV, targets_BT, layout) * weights_BT)


def _forward(x_BTD, head_DV, targets_BT, weights_BT, layout: _Layout):
    arrays = (x_BTD, head_DV, targets_BT, weights_BT)
    losses_BT, dx_BTD, dhead_DV = _losses_and_gradients(*arrays, layout)
    # The gradients replace the activations and the head as residuals of the backward pass.
    residuals = (losses_BT, dx_BTD, dhead_DV.astype(head_DV.dtype))
    return jnp.sum(losses_BT * weights_BT), residuals


def _backward(_, residuals, g):
    # g is the gradient of the returned sum, a scalar that scales the gradients found already.
    losses_BT, dx_BTD, dhead_DV = ((a * g).astype(a.dtype) for a in residuals)
    # The sum is linear in the weights: its derivative by a weight is the loss of that token.
    return dx_BTD, dhead_DV, np.zeros(losses_BT.shape, jax.dtypes.float0), losses_BT


_cross_entropy.defvjp(_forward, _backward)
