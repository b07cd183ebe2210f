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
WHOLE = PartitionSpec(None, None)


def cross_entropy(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    vocab: int | None = None,
    implementation: str = "",
    tokens: PartitionSpec = WHOLE,
    head: PartitionSpec = WHOLE,
) -> jax.Array:
    """Returns the sum over tokens of weight x -log softmax(x @ head)[target], in nats, fp32.

    Products run in x's dtype and accumulate in fp32; gradients are those of all inputs but the targets.

    Args:
      vocab: columns of the head from there on are no words: they have no probability and no gradient.
      tokens, head: how the mesh in use (`jax.set_mesh`) splits (B, T) and (D, V). The axes that split D are among those that
        split the tokens, those that split V are not. Where no mesh is in use they mean nothing.

    Raises:
      ValueError: for an unknown implementation.
    """
    return _cross_entropy(
        x_BTD,
        head_DV,
        targets_BT,
        weights_BT,
        _layout(x_BTD, head_DV, vocab, implementation, tokens, head),
    )


def token_losses(
    x_BTD, head_DV, targets_BT, *, vocab=None, implementation="", tokens=WHOLE, head=WHOLE
) -> jax.Array:
    """Returns -log softmax(x @ head)[target]_BT of each token, to read: it has no gradient. Arguments: `cross_entropy`."""
    return _losses(
        x_BTD, head_DV, targets_BT, _layout(x_BTD, head_DV, vocab, implementation, tokens, head)
    )


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What is fixed when a call is compiled. The axes are those of the mesh that split what they name."""

    vocab: int | None  # None: every column is a word
    implementation: str
    tokens: PartitionSpec
    head: PartitionSpec
    token_axes: tuple[str, ...]
    embed_axes: tuple[str, ...]
    vocab_axes: tuple[str, ...]


def default_implementation(x_BTD: jax.Array, head_DV: jax.Array) -> str:
    """Returns the fastest implementation that works here. The compiler cannot split a Pallas kernel over devices by itself."""
    split = not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1
    if platform() != "tpu" or not split:
        return "xla"
    return (
        "pallas_tpu"
        if largest(x_BTD.shape[-1], x_BTD.dtype.itemsize, head_DV.dtype.itemsize, vmem_bytes())
        else "xla"
    )


def _layout(x_BTD, head_DV, vocab, implementation, tokens, head) -> _Layout:
    implementation = implementation or default_implementation(x_BTD, head_DV)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"no cross-entropy implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    sizes = jax.sharding.get_abstract_mesh().shape
    axes = lambda entry: tuple(
        a for a in ((entry,) if isinstance(entry, str) else entry or ()) if sizes.get(a, 1) > 1
    )
    vocab = None if vocab == head_DV.shape[1] else vocab
    return _Layout(
        vocab,
        implementation,
        tokens,
        head,
        axes(tokens[0]) + axes(tokens[1]),
        axes(head[0]),
        axes(head[1]),
    )


def _split(function, layout: _Layout, *out_specs: PartitionSpec):
    """Lets each device run `function` on its part of x_BTD, head_DV, targets_BT and weights_BT."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    in_specs = (PartitionSpec(*layout.tokens, None), layout.head, layout.tokens, layout.tokens)
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _part(x_BTD, head_DV, targets_BT, layout: _Layout):
    """Returns what an implementation works on: x_TD, the head whole in D, targets_T counted from its first column, and words."""
    if layout.embed_axes:
        head_DV = jax.lax.all_gather(
            head_DV.astype(x_BTD.dtype), layout.embed_axes, axis=0, tiled=True
        )
    first = jax.lax.axis_index(layout.vocab_axes) * head_DV.shape[1] if layout.vocab_axes else 0
    words = None if layout.vocab is None else jnp.clip(layout.vocab - first, 0, head_DV.shape[1])
    return x_BTD.reshape(-1, x_BTD.shape[-1]), head_DV, targets_BT.reshape(-1) - first, words


def _losses(x_BTD, head_DV, targets_BT, layout: _Layout):
    def part(x_BTD, head_DV, targets_BT, _):
        x_TD, head_DV, targets_T, words = _part(x_BTD, head_DV, targets_BT, layout)
        losses_T = IMPLEMENTATIONS[layout.implementation].losses(
            x_TD, head_DV, targets_T, words, layout.vocab_axes
        )
        return (losses_T.reshape(targets_BT.shape),)

    return _split(part, layout, layout.tokens)(x_BTD, head_DV, targets_BT, targets_BT)[0]


def _losses_and_gradients(x_BTD, head_DV, targets_BT, weights_BT, layout: _Layout):
    """Returns losses_BT, dx_BTD and dhead_DV in fp32."""

    def part(x_BTD, head_DV, targets_BT, weights_BT):
        x_TD, head_DV, targets_T, words = _part(x_BTD, head_DV, targets_BT, layout)
        gradients = IMPLEMENTATIONS[layout.implementation].losses_and_gradients
        losses_T, dx_TD, dhead_DV = gradients(
            x_TD, head_DV, targets_T, weights_BT.reshape(-1), words, layout.vocab_axes
        )
        if layout.embed_axes:
            dhead_DV = jax.lax.psum_scatter(
                dhead_DV, layout.embed_axes, scatter_dimension=0, tiled=True
            )
        if others := tuple(a for a in layout.token_axes if a not in layout.embed_axes):
            dhead_DV = jax.lax.psum(dhead_DV, others)
        return losses_T.reshape(targets_BT.shape), dx_TD.reshape(x_BTD.shape), dhead_DV

    out_specs = layout.tokens, PartitionSpec(*layout.tokens, None), layout.head
    return _split(part, layout, *out_specs)(x_BTD, head_DV, targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(x_BTD, head_DV, targets_BT, weights_BT, layout: _Layout):
    return jnp.sum(_losses(x_BTD, head_DV, targets_BT, layout) * weights_BT)


def _forward(x_BTD, head_DV, targets_BT, weights_BT, layout: _Layout):
    losses_BT, dx_BTD, dhead_DV = _losses_and_gradients(
        x_BTD, head_DV, targets_BT, weights_BT, layout
    )
    return jnp.sum(losses_BT * weights_BT), (losses_BT, dx_BTD, dhead_DV.astype(head_DV.dtype))


def _backward(_, gradients, g):
    losses_BT, dx_BTD, dhead_DV = ((a * g).astype(a.dtype) for a in gradients)
    return dx_BTD, dhead_DV, np.zeros(losses_BT.shape, jax.dtypes.float0), losses_BT


_cross_entropy.defvjp(_forward, _backward)
