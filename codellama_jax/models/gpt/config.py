"""The config of GPT models: Codex, CodeGeeX, StarCoder, SantaCoder and PanGu-Coder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from codellama_jax.checked import FieldError, Range
from codellama_jax.config import Decay, ModelConfig, Tokens

Deviation = Annotated[float, Range(0, 100, open_least=True)]


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """A GPT-2 transformer: learned positions, LayerNorm, biases, GELU.

    Attention has a key head per query head (`n_kv_heads` = `n_heads`) or one for all of them,
    multi-query attention; numbers between work as well.
    """

    family: ClassVar[str] = "gpt"
    adjustable: ClassVar[frozenset[str]] = ModelConfig.adjustable | {"init_std", "dropout"}

    n_positions: Tokens = 2048  # P: learned positions, the most tokens of a sequence
    activation: Literal["gelu_tanh", "quick_gelu"] = "gelu_tanh"
    # One more layer above the `n_layers` blocks, whose queries are learned vectors, one per
    # position (PanGu-alpha, CodeGeeX). Published counts of layers include it; `n_layers` does not.
    top_query: bool = False
    # Standard deviation of initial weights. Weights that add to the residual stream have it divided
    # by sqrt(2 x layers).
    init_std: Deviation = 0.02
    dropout: Decay = 0.0  # training only

    def longest_sequence(self) -> int:
        """Returns the number of learned positions."""
        return self.n_positions

    def check_relations(self) -> None:
        """Raises FieldError for dropout, beside the checks of every family."""
        super().check_relations()
        if self.dropout:
            problem = f" is {self.dropout:g}: dropout is not implemented yet; it must be 0"
            raise FieldError(("dropout",), problem)
