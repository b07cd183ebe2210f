"""Llama as a pure function: `Llama(config).apply({"params": params}, tokens_BT, positions_BT)`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from codellama_jax.models.layers import (
    Inputs,
    RMSNorm,
    collected,
    dealt,
    length_shards,
    parameter,
    rope_angles,
    stacked,
)
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.layers import Block


class Llama(nn.Module):
    """The decoder of Touvron et al. 2023, layers stacked along a leading L by a scan."""

    config: LlamaConfig

    def setup(self):
        c = self.config
        self.embedding_VD = parameter(
            self, "embedding", (c.vocab_size, c.d_model), ("vocab", "embed"), 1 / c.d_model
        )
        self.layers = stacked(Block, c)
        self.final_norm = RMSNorm(c.norm_eps)
        if not c.tied_embeddings:
            self.head_DV = parameter(
                self, "head", (c.d_model, c.vocab_size), ("embed", "vocab"), 1 / c.d_model
            )

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        keep_kv: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns the normalized last activations x_BTD, and the keys and values of all layers.

        Positions count from 0 in every document. The keys and values, both _LBTKH, are None unless
        `keep_kv` asks for them. Where a mesh shards the length, the layers see each sequence in the
        order in which ring attention deals it to the devices; what is given and returned is in the
        sequence's own order.
        """
        c, shards = self.config, length_shards(tokens_BT.shape[1])
        tokens_BT, positions_BT = dealt(tokens_BT, shards), dealt(positions_BT, shards)
        segment_ids_BT = dealt(segment_ids_BT, shards)
        # Gathered whole in D: each device then looks up its own tokens.
        table_VD = nn.with_logical_constraint(
            self.embedding_VD.astype(c.compute_dtype), ("vocab", None)
        )
        x_BTD = nn.with_logical_constraint(table_VD[tokens_BT], ("batch", "length", None))
        cos, sin = rope_angles(positions_BT, c.head_dim, c.rope_theta, c.rope_scaling)
        rope = cos[:, :, None], sin[:, :, None]
        x_BTD, kv_LBTKH = self.layers(x_BTD, Inputs(positions_BT, segment_ids_BT, rope, keep_kv))
        x_BTD = collected(self.final_norm(x_BTD), shards)
        x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "length", None))
        in_order = jax.vmap(lambda a_BTKH: collected(a_BTKH, shards))
        return x_BTD, jax.tree.map(in_order, kv_LBTKH)

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Returns fp32 logits_BTV."""
        head_DV = self.embedding_VD.T if self.config.tied_embeddings else self.head_DV
        return jnp.matmul(x_BTD, head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segment_ids_BT: jax.Array | None = None
    ) -> jax.Array:
        """Returns fp32 logits_BTV."""
        return self.unembed(self.hidden(tokens_BT, positions_BT, segment_ids_BT)[0])
