"""Looking up vectors of tokens and positions in tables, with a gradient that adds them in fp32.

The gradient that JAX derives adds in the compute dtype. A batch holds a frequent token thousands of
times, and a sum in bf16 stops growing at 256 times its terms.

Dims: those of `models/layers.py`; V rows of a table.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from codellama_jax.models.layers import mesh_axes


def embed(table_VD: jax.Array, tokens_BT: jax.Array, dtype: Any) -> jax.Array:
    """Returns the embeddings x_BTD of tokens, in `dtype`."""
    x_BTD = look_up(table_VD, tokens_BT, dtype, "vocab")
    return nn.with_logical_constraint(x_BTD, ("batch", "length", None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def look_up(
    table_VD: jax.Array, indices_BT: jax.Array, dtype: Any, rows: str | None = None
) -> jax.Array:
    """Returns rows x_BTD of a table. An index past its end takes the last row.

    Args:
      table_VD: the table, of which training has the fp32 parameter.
      indices_BT: int32 indices of the rows.
      dtype: of the result.
      rows: logical axis of the rows; None is never sharded.
    """
    # Every device gathers the full width D once, and then looks up its tokens without
    # communication. Left to XLA, each lookup would be a sum over the shards of D.
    table_VD = nn.with_logical_constraint(table_VD.astype(dtype), (rows, None))
    return table_VD.at[indices_BT].get(mode="clip")


def _look_up_forward(
    table_VD: jax.Array, indices_BT: jax.Array, dtype: Any, rows: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return look_up(table_VD, indices_BT, dtype, rows), (table_VD, indices_BT)


def _look_up_backward(
    _: Any, rows: str | None, residuals: tuple[jax.Array, jax.Array], dx_BTD: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    table_VD, indices_BT = residuals
    (V, D), (B, T) = table_VD.shape, indices_BT.shape
    row_axes = mesh_axes(rows, V) if rows else ()
    batch_axes, length_axes = mesh_axes("batch", B), mesh_axes("length", T)
    token_axes = batch_axes + length_axes
    # Scattered along D only over axes whose devices hold different tokens.
    width_axes = tuple(axis for axis in mesh_axes("embed", D) if axis in token_axes)

    def local(indices_BT: jax.Array, dx_BTD: jax.Array) -> jax.Array:
        """Returns this device's shard of the gradient, from the tokens that it holds."""
        held = V // jax.lax.axis_size(row_axes) if row_axes else V
        index_BT = jnp.clip(indices_BT, 0, V - 1)
        if row_axes:
            index_BT -= jax.lax.axis_index(row_axes) * held
            # Past the end, so that mode="drop" leaves out rows of other shards; a negative index
            # would count from the end.
            index_BT = jnp.where(index_BT < 0, held, index_BT)
        sums_VD = jnp.zeros((held, D), jnp.float32)
        sums_VD = sums_VD.at[index_BT].add(dx_BTD.astype(jnp.float32), mode="drop")
        # As the gradient of the output head (kernels/cross_entropy/api.py): each device needs only
        # its part of the sum over all tokens.
        if width_axes:
            sums_VD = jax.lax.psum_scatter(sums_VD, width_axes, scatter_dimension=1, tiled=True)
        other_axes = tuple(axis for axis in token_axes if axis not in width_axes)
        return jax.lax.psum(sums_VD, other_axes) if other_axes else sums_VD

    if not jax.sharding.get_abstract_mesh().empty:
        tokens = PartitionSpec(batch_axes, length_axes)
        local = jax.shard_map(
            local,
            in_specs=(tokens, PartitionSpec(*tokens, None)),
            out_specs=PartitionSpec(row_axes, width_axes),
            check_vma=False,
        )
    gradient_VD = local(indices_BT, dx_BTD).astype(table_VD.dtype)
    return gradient_VD, np.zeros(indices_BT.shape, jax.dtypes.float0)


look_up.defvjp(_look_up_forward, _look_up_backward)
