"""The block of Llama: grouped-query attention with RoPE, SwiGLU, RMSNorm before each.

Dims: those of `models/layers.py`, and X = G + 2.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from codellama_jax.models.layers import (
    Inputs,
    RMSNorm,
    attend,
    bias_parameter,
    mesh_axes,
    parameter,
    project,
    project_sections,
    rotate,
)
from codellama_jax.models.llama.config import LlamaConfig
from kernels.fusion import materialized


class Attention(nn.Module):
    """Grouped-query attention.

    One weight holds, for each key head, its G query heads, its key and its value.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, inputs: Inputs
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the attention's output x_BTD, and keys and values, both _BTKH."""
        c = self.config
        B, T, D = x_BTD.shape
        K, G, H = c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim
        w_qkv = parameter(self, "qkv", (D, K, G + 2, H), ("embed", "heads", None, None), 1 / D)
        # The variances of `out` and `down` are divided by 2 L, the number of terms that all layers
        # add to the residual stream, so that its scale does not grow with depth (GPT-2).
        w_out = parameter(
            self,
            "out",
            (K, G, H, D),
            ("heads", None, None, "embed"),
            1 / (K * G * H * 2 * c.n_layers),
        )
        rope = inputs.rope
        assert rope is not None, "Llama rotates queries and keys"
        # One key head cannot be sharded: its projection is then replicated.
        heads = "heads" if mesh_axes("heads", K) else None
        b_qkv = None
        if c.attention_bias != "none":
            b_qkv = bias_parameter(self, "qkv_bias", (K, G + 2, H), ("heads", None, None))

        def finish(out_BTKXH: jax.Array, section: slice) -> jax.Array:
            if b_qkv is not None:
                out_BTKXH += b_qkv[:, section].astype(x_BTD.dtype)[None, None]
            return nn.with_logical_constraint(out_BTKXH, ("batch", "length", heads, None, None))

        # The queries of a key head, its key and its value.
        sections = slice(0, G), slice(G, G + 1), slice(G + 1, G + 2)
        projected = project_sections(x_BTD, w_qkv, 2, sections, finish)
        q_BTKGH, k_BTK1H, v_BTK1H = (materialized(part) for part in projected)
        q_BTNH = materialized(rotate(q_BTKGH.reshape(B, T, K * G, H), rope))
        # Keys are kept rotated: a cached key never needs its position again.
        k_BTKH, v_BTKH = materialized(rotate(k_BTK1H[:, :, :, 0], rope)), v_BTK1H[:, :, :, 0]
        out_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, inputs, c.attention)
        out_BTD = project(out_BTNH.reshape(B, T, -1), w_out, inputs=3)
        if c.attention_bias == "all":
            b_out = bias_parameter(self, "out_bias", (D,), ("norm",))
            out_BTD += b_out.astype(x_BTD.dtype)[None, None]
        return out_BTD, (k_BTKH, v_BTKH)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one weight."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the layer's output x_BTD."""
        c = self.config
        w_gate_up = parameter(
            self, "gate_up", (c.d_model, 2, c.d_ff), ("embed", None, "ffn"), 1 / c.d_model
        )
        w_down = parameter(
            self, "down", (c.d_ff, c.d_model), ("ffn", "embed"), 1 / (c.d_ff * 2 * c.n_layers)
        )

        def finish(out_BTXF: jax.Array, _: slice) -> jax.Array:
            return nn.with_logical_constraint(out_BTXF, ("batch", "length", None, "ffn"))

        sections = slice(0, 1), slice(1, 2)
        gate_BT1F, up_BT1F = project_sections(x_BTD, w_gate_up, 1, sections, finish)
        # The halves are constrained too: XLA would otherwise shard the dim X over fsdp, and bring
        # both halves back with an all-reduce each.
        half_axes = ("batch", "length", "ffn")
        gate_BTF = nn.with_logical_constraint(gate_BT1F[:, :, 0], half_axes)
        up_BTF = nn.with_logical_constraint(up_BT1F[:, :, 0], half_axes)
        return project(nn.silu(gate_BTF) * up_BTF, w_down)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, the unit that the scan over layers repeats."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, inputs: Inputs
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns x_BTD after the block, and keys and values if `inputs.keep_kv`."""
        c = self.config
        normed_BTD = RMSNorm(c.norm_eps, name="attention_norm")(x_BTD)
        out_BTD, kv = Attention(c, name="attention")(normed_BTD, inputs)
        x_BTD = x_BTD + out_BTD
        normed_BTD = RMSNorm(c.norm_eps, name="ffn_norm")(x_BTD)
        x_BTD = x_BTD + SwiGLU(c, name="ffn")(normed_BTD)
        # Without a constraint on the scan's carry, XLA may choose another sharding for the loop
        # and communicate in every layer.
        x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "length", None))
        return x_BTD, kv if inputs.keep_kv else None
