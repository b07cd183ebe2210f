"""Llama as a pure function: `Llama(config).apply({"params": params}, tokens_BT, positions_BT)`."""

from __future__ import annotations

import flax.linen as nn
import jax

from codellama_jax.models.layers import (
    Inputs,
    LanguageModel,
    RMSNorm,
    length_shards,
    parameter,
    stacked,
    striped,
    unstriped,
)
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.layers import Block
from codellama_jax.models.llama.rope import document_lengths, rope
from codellama_jax.models.lookup import embed
from kernels.fusion import materialized


class Llama(LanguageModel):
    """The decoder of Touvron et al. 2023, layers stacked along a leading L by a scan."""

    config: LlamaConfig

    def setup(self) -> None:
        """Declares the parameters and submodules."""
        c = self.config
        # The variance is that of the head, because tied embeddings are the head as well.
        self.embedding_VD = parameter(
            self, "embedding", (c.vocab_size, c.d_model), ("vocab", "embed"), 1 / c.d_model
        )
        # One module whose parameters have a leading layer dim; its scan is one loop in the program.
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
    ) -> jax.Array:
        """Returns the normalized last activations x_BTD.

        Positions count from 0 in every document. Where a mesh shards the length, the layers read
        each sequence striped over the devices, as ring attention needs it; arguments and result
        are in the sequence's natural order.
        """
        # Everything that depends on a token's place in the sequence is computed or permuted here,
        # once; the layers themselves see tokens in any order, with their positions.
        c, shards = self.config, length_shards(tokens_BT.shape[1])
        # Before striping, because the end of a document is found from the order of its tokens.
        lengths_BT = striped(document_lengths(positions_BT, segment_ids_BT), shards)
        tokens_BT, positions_BT = striped(tokens_BT, shards), striped(positions_BT, shards)
        if segment_ids_BT is not None:
            segment_ids_BT = striped(segment_ids_BT, shards)
        x_BTD = embed(self.embedding_VD, tokens_BT, c.compute_dtype)
        # The angles of RoPE are the same for all layers, so they are computed once, outside the
        # scan.
        cos, sin = rope(c, positions_BT, lengths_BT)
        inputs = Inputs(positions_BT, segment_ids_BT, (materialized(cos), materialized(sin)))
        x_BTD, _ = self.layers(x_BTD, inputs)
        x_BTD = unstriped(self.final_norm(x_BTD), shards)
        return nn.with_logical_constraint(x_BTD, ("batch", "length", None))
