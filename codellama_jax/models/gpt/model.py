"""GPT as a pure function: `GPT(config).apply({"params": params}, tokens_BT, positions_BT)`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.gpt.layers import Block, LayerNorm
from codellama_jax.models.layers import (
    REMAT_POLICIES,
    Inputs,
    LanguageModel,
    dropout,
    length_shards,
    parameter,
    stacked,
    striped,
    unstriped,
)
from codellama_jax.models.lookup import embed, look_up


def at_positions(table_PD: jax.Array, positions_BT: jax.Array, dtype: Any) -> jax.Array:
    """Returns the learned vectors x_BTD of positions, in `dtype`.

    Positions from P on, which only padding has, get the last vector.
    """
    x_BTD = look_up(table_PD, positions_BT, dtype)
    return nn.with_logical_constraint(x_BTD, ("batch", "length", None))


class GPT(LanguageModel):
    """The decoder of Radford et al. 2019, layers stacked along a leading L by a scan."""

    config: GPTConfig

    def setup(self) -> None:
        """Declares the parameters and submodules."""
        c, variance = self.config, self.config.init_std**2
        V, P, D = c.vocab_size, c.n_positions, c.d_model
        self.embedding_VD = parameter(self, "embedding", (V, D), ("vocab", "embed"), variance)
        self.positions_PD = parameter(self, "positions", (P, D), (None, "embed"), variance)
        self.layers = stacked(Block, c)
        self.final_norm = LayerNorm(c.norm_eps)
        if c.top_query:
            self.top_queries_PD = parameter(self, "top_queries", (P, D), (None, "embed"), variance)
            # The top layer is outside the scan, which would rematerialise it as it does the others.
            is_plain = c.remat == "none"
            top = Block if is_plain else nn.remat(Block, policy=REMAT_POLICIES[c.remat])
            self.top_layer = top(c)
        if not c.tied_embeddings:
            self.head_DV = parameter(self, "head", (D, V), ("embed", "vocab"), variance)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        sequences_B: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the last activations x_BTD: normalized, or those of the top query layer.

        With `sequences_B`, the number of each sequence in the global batch, activations are
        dropped; their random numbers come from the collection `dropout`.

        Positions count from 0 in every document. Where a mesh shards the length, the layers read
        each sequence striped over the devices, as ring attention needs it; arguments and result
        are in the sequence's natural order.
        """
        c, shards = self.config, length_shards(tokens_BT.shape[1])
        tokens_BT, positions_BT = striped(tokens_BT, shards), striped(positions_BT, shards)
        if segment_ids_BT is not None:
            segment_ids_BT = striped(segment_ids_BT, shards)
        x_BTD = embed(self.embedding_VD, tokens_BT, c.compute_dtype)
        x_BTD += at_positions(self.positions_PD, positions_BT, c.compute_dtype)
        # GPT-2 drops embeddings once, after tokens and positions are added.
        x_BTD = dropout(self, x_BTD, c.embedding_dropout, sequences_B)
        inputs = Inputs(positions_BT, segment_ids_BT, sequences_B=sequences_B)
        x_BTD, _ = self.layers(x_BTD, inputs)
        # With a top query layer no norm follows it: its output goes to the head as it is.
        x_BTD = self.final_norm(x_BTD)
        if c.top_query:
            queries_BTD = at_positions(self.top_queries_PD, positions_BT, c.compute_dtype)
            x_BTD, _ = self.top_layer(x_BTD, inputs, queries_BTD)
        return nn.with_logical_constraint(unstriped(x_BTD, shards), ("batch", "length", None))
