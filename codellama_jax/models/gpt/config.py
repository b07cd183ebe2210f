"""The config of GPT models: Codex, CodeGeeX, StarCoder, SantaCoder and PanGu-Coder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from codellama_jax.checked import FieldError, Range
from codellama_jax.config import SPARSE, Decay, ModelConfig, Tokens

Deviation = Annotated[float, Range(0, 100, open_least=True)]


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """A GPT-2 transformer: learned positions, LayerNorm, biases, GELU.

    Attention has a key head per query head (`n_kv_heads` = `n_heads`) or one for all of them,
    multi-query attention; numbers between work as well.
    """

    family: ClassVar[str] = "gpt"
    adjustable: ClassVar[frozenset[str]] = ModelConfig.adjustable | {
        "init_std",
        "dropout",
        "embedding_dropout",
        "attention_dropout",
    }

    n_positions: Tokens = 2048  # P: learned positions, the most tokens of a sequence
    activation: Literal["gelu_tanh", "quick_gelu"] = "gelu_tanh"
    # One more layer above the `n_layers` blocks, whose queries are learned vectors, one per
    # position (PanGu-alpha, CodeGeeX). Published counts of layers include it; `n_layers` does not.
    top_query: bool = False
    # Standard deviation of initial weights. Weights that add to the residual stream have it divided
    # by sqrt(2 x layers).
    init_std: Deviation = 0.02
    # Shares of activations that training sets to 0 (Radford et al. 2019): of all that is added to
    # the residual stream, of the sum of token and position embeddings, and of attention weights.
    dropout: Decay = 0.0
    embedding_dropout: Decay = field(default=0.0, metadata=SPARSE)
    attention_dropout: Decay = field(default=0.0, metadata=SPARSE)

    def longest_sequence(self) -> int:
        """Returns the number of learned positions."""
        return self.n_positions

    def has_dropout(self) -> bool:
        """Returns whether training drops any activations."""
        return bool(self.dropout or self.embedding_dropout or self.attention_dropout)

    def check_relations(self) -> None:
        """Raises FieldError for attention dropout in a kernel, beside the checks of all families."""
        super().check_relations()
        if self.attention_dropout and self.attention != "reference":
            problem = (
                f" is {self.attention_dropout:g}: only attention 'reference', which holds all"
                f" attention weights, has dropout, and attention is {self.attention!r}; set"
                " attention to 'reference', or attention_dropout to 0"
            )
            raise FieldError(("attention_dropout",), problem)
