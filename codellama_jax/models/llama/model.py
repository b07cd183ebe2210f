"""Llama as a pure function: `Llama(config).apply({"params": params}, tokens_BT, positions_BT, ...) -> logits_BTV`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from codellama_jax.config import ModelConfig
from codellama_jax.models.layers import (
    Block,
    Inputs,
    RMSNorm,
    collected,
    dealt,
    length_shards,
    parameter,
    rope_angles,
)

REMAT_POLICIES = {
    "full": None,  # keep the input of every layer, compute the rest again
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,  # keep the products with weights as well
}


class Llama(nn.Module):
    """The decoder of Touvron et al. 2023, layers stacked along a leading L by a scan."""

    config: ModelConfig

    def setup(self):
        c = self.config
        self.embedding_VD = parameter(
            self, "embedding", (c.vocab_size, c.d_model), ("vocab", "embed"), 1 / c.d_model
        )
        block = (
            Block
            if c.remat == "none"
            else nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=False)
        )
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.n_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        self.final_norm = RMSNorm(c.norm_eps)
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
        """Returns the normalised last activations x_BTD and, if asked to keep them, the keys and values of all layers, both _LBTKH.

        Positions count from 0 in every document. Where a mesh cuts the length, the layers see the row as ring attention deals it to
        the devices; what is given and returned is in the row's own order.
        """
        c, shards = self.config, length_shards(tokens_BT.shape[1])
        tokens_BT, positions_BT, segment_ids_BT = (
            dealt(a, shards) for a in (tokens_BT, positions_BT, segment_ids_BT)
        )
        table_VD = nn.with_logical_constraint(
            self.embedding_VD.astype(c.compute_dtype), ("vocab", None)
        )  # gathered whole in D
        x_BTD = nn.with_logical_constraint(table_VD[tokens_BT], ("batch", "length", None))
        rope = tuple(
            a[:, :, None]
            for a in rope_angles(positions_BT, c.head_dim, c.rope_theta, c.rope_scaling)
        )
        x_BTD, kv_LBTKH = self.layers(x_BTD, Inputs(positions_BT, segment_ids_BT, rope, keep_kv))
        x_BTD = nn.with_logical_constraint(
            collected(self.final_norm(x_BTD), shards), ("batch", "length", None)
        )
        return x_BTD, jax.tree.map(jax.vmap(lambda a_BTKH: collected(a_BTKH, shards)), kv_LBTKH)

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Returns fp32 logits_BTV."""
        return jnp.matmul(
            x_BTD, self.head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32
        )

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segment_ids_BT: jax.Array | None = None
    ) -> jax.Array:
        """Returns fp32 logits_BTV."""
        return self.unembed(self.hidden(tokens_BT, positions_BT, segment_ids_BT)[0])
