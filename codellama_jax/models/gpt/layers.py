"""The block of GPT: attention and a two-layer feed-forward network, LayerNorm before each.

Dims: those of `models/layers.py`.
"""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.layers import (
    Inputs,
    attend,
    bias_parameter,
    dropout,
    kept,
    mesh_axes,
    parameter,
    project,
)
from kernels.flash_attention import reference


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis: int = -1
) -> jax.Array:
    """Normalizes to mean 0 and variance 1 along `axis`, in fp32; returns x's dtype.

    Args:
      x: activations.
      scale, bias: they broadcast to x.
      epsilon: added to the variance.
      axis: the axis of the width D.
    """
    # In fp32: a variance is a small difference of large sums, which bf16 would lose.
    x32 = x.astype(jnp.float32)
    x32 -= jnp.mean(x32, axis, keepdims=True)
    x32 *= jax.lax.rsqrt(jnp.mean(x32**2, axis, keepdims=True) + epsilon)
    return (x32 * scale + bias).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalization with a learned scale and bias (Ba et al. 2016)."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the normalized activations, in their dtype."""
        D = x_BTD.shape[-1]
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale_D = cast(jax.Array, self.param("scale", init, (D,), jnp.float32))
        bias_D = bias_parameter(self, "bias", (D,), ("norm",))
        return layer_norm(x_BTD, scale_D[None, None], bias_D[None, None], self.epsilon)


def activate(x: jax.Array, activation: str) -> jax.Array:
    """Applies the activation function of `GPTConfig.activation`.

    `quick_gelu` is x sigmoid(1.702 x), which CodeGeeX calls FastGELU. Its code computes the same
    as x / (1 + exp(-1.702 |x|)) exp(0.851 (x - |x|)). A description of CodeGeeX prints the last
    factor inside the denominator, which is wrong: that grows exponentially for negative x.
    """
    if activation == "quick_gelu":
        return x * nn.sigmoid(1.702 * x)
    # The tanh approximation, as in GPT-2; the exact GELU would change published models.
    return nn.gelu(x, approximate=True)


def residual_variance(config: GPTConfig) -> float:
    """Returns the initial variance of weights that add to the residual stream (GPT-2).

    Every layer adds two terms, so that the scale of their sum does not grow with depth.
    """
    return config.init_std**2 / (2 * (config.n_layers + config.top_query))


class Attention(nn.Module):
    """Multi-head or multi-query attention with biases."""

    config: GPTConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, queries_BTD: jax.Array, inputs: Inputs
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the attention's output x_BTD, and keys and values, both _BTKH.

        Args:
          x_BTD: normalized activations, for keys and values.
          queries_BTD: activations for the queries: x_BTD, or those of the top query layer.
          inputs: positions and segments.
        """
        c = self.config
        B, T, D = x_BTD.shape
        N, K, H, dtype = c.n_heads, c.n_kv_heads, c.head_dim, x_BTD.dtype
        # Queries are separate from keys and values: a mesh that shards the query heads replicates
        # the one key head of multi-query attention, but not the queries' weights with it.
        w_q = parameter(self, "q", (D, N, H), ("embed", "heads", None), c.init_std**2)
        b_q = bias_parameter(self, "q_bias", (N, H), ("heads", None))
        w_kv = parameter(self, "kv", (D, 2, K, H), ("embed", None, "heads", None), c.init_std**2)
        b_kv = bias_parameter(self, "kv_bias", (2, K, H), (None, "heads", None))
        w_out = parameter(self, "out", (N, H, D), ("heads", None, "embed"), residual_variance(c))
        b_out = bias_parameter(self, "out_bias", (D,), ("norm",))
        q_BTNH = project(queries_BTD, w_q) + b_q.astype(dtype)[None, None]
        kv_BTXKH = project(x_BTD, w_kv) + b_kv.astype(dtype)[None, None]
        q_axes, kv_axes = (_heads(count) for count in (N, K))
        q_BTNH = nn.with_logical_constraint(q_BTNH, ("batch", "length", q_axes, None))
        kv_BTXKH = nn.with_logical_constraint(kv_BTXKH, ("batch", "length", None, kv_axes, None))
        k_BTKH, v_BTKH = kv_BTXKH[:, :, 0], kv_BTXKH[:, :, 1]
        if c.attention_dropout and inputs.sequences_B is not None:
            out_BTNH = self._attend_with_dropout(q_BTNH, k_BTKH, v_BTKH, inputs)
        else:
            out_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, inputs, c.attention)
        out_BTD = project(out_BTNH.reshape(B, T, -1), w_out, inputs=2)
        return out_BTD + b_out.astype(dtype)[None, None], (k_BTKH, v_BTKH)

    def _attend_with_dropout(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, inputs: Inputs
    ) -> jax.Array:
        """Returns out_BTNH of attention of which a share of the weights is dropped."""
        key, rate = self.make_rng("dropout"), self.config.attention_dropout
        numbers_B = cast(jax.Array, inputs.sequences_B)

        def drop(weights_BKGTS: jax.Array) -> jax.Array:
            return weights_BKGTS * kept(key, numbers_B, rate, weights_BKGTS.shape[1:])

        # Without `shard_map`: the compiler partitions the random numbers too, so that every mesh
        # draws the same.
        positions_BT, segments_BT = inputs.positions_BT, inputs.segment_ids_BT
        return reference.attention(
            q_BTNH, k_BTKH, v_BTKH, positions_BT, positions_BT, segments_BT, segments_BT, drop
        )


def _heads(count: int) -> str | None:
    """Returns the logical axis of that many heads, None where the mesh does not divide them."""
    return "heads" if mesh_axes("heads", count) else None


class FeedForward(nn.Module):
    """down(gelu(up(x))) with biases."""

    config: GPTConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the layer's output x_BTD."""
        c, dtype = self.config, x_BTD.dtype
        D, F = c.d_model, c.d_ff
        w_up = parameter(self, "up", (D, F), ("embed", "ffn"), c.init_std**2)
        b_up = bias_parameter(self, "up_bias", (F,), ("ffn",))
        w_down = parameter(self, "down", (F, D), ("ffn", "embed"), residual_variance(c))
        b_down = bias_parameter(self, "down_bias", (D,), ("norm",))
        up_BTF = project(x_BTD, w_up) + b_up.astype(dtype)[None, None]
        up_BTF = nn.with_logical_constraint(up_BTF, ("batch", "length", "ffn"))
        down_BTD = project(activate(up_BTF, c.activation), w_down)
        return down_BTD + b_down.astype(dtype)[None, None]


class Block(nn.Module):
    """Pre-norm attention and feed-forward, the unit that the scan over layers repeats.

    The top query layer is the same block with other queries.
    """

    config: GPTConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, inputs: Inputs, queries_BTD: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns x_BTD after the block, and keys and values if `inputs.keep_kv`.

        Args:
          x_BTD: activations.
          inputs: positions and segments.
          queries_BTD: activations for the queries, which are not normalized; None takes x_BTD
            normalized.
        """
        c = self.config
        normed_BTD = LayerNorm(c.norm_eps, name="attention_norm")(x_BTD)
        queries_BTD = normed_BTD if queries_BTD is None else queries_BTD
        out_BTD, kv = Attention(c, name="attention")(normed_BTD, queries_BTD, inputs)
        x_BTD = x_BTD + dropout(self, out_BTD, c.dropout, inputs.sequences_B)
        normed_BTD = LayerNorm(c.norm_eps, name="ffn_norm")(x_BTD)
        out_BTD = FeedForward(c, name="ffn")(normed_BTD)
        x_BTD = x_BTD + dropout(self, out_BTD, c.dropout, inputs.sequences_B)
        # Without a constraint on the scan's carry, XLA may choose another sharding for the loop
        # and communicate in every layer.
        x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "length", None))
        return x_BTD, kv if inputs.keep_kv else None
