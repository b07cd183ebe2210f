"""The config of Llama, Llama 2, Code Llama and models of their shape, such as Qwen2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from codellama_jax.checked import FieldError, Range
from codellama_jax.config import ModelConfig

Factor = Annotated[float, Range(0, 1e6, open_least=True)]
ROPE_FIELDS = (
    *("rope_theta", "rope_scaling", "rope_type", "rope_low_factor", "rope_high_factor"),
    "rope_original_length",
)


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A Llama transformer: RMSNorm, rotary position embeddings (RoPE), SwiGLU.

    The defaults are Llama 2's, which has no biases. The formulas of RoPE are in `rope.py`.
    """

    family: ClassVar[str] = "llama"
    adjustable: ClassVar[frozenset[str]] = ModelConfig.adjustable | set(ROPE_FIELDS)

    rope_theta: Annotated[float, Range(1, 1e15)] = 1e4
    # How often longer the context becomes. Linear interpolation divides positions by it.
    rope_scaling: Factor = 1.0
    # What `rope_scaling` changes: positions (linear), the low frequencies (llama3), or the base,
    # for sequences longer than `rope_original_length` (dynamic).
    rope_type: Literal["linear", "llama3", "dynamic"] = "linear"
    # Of llama3: wavelengths above rope_original_length / low are divided, those below
    # rope_original_length / high are not.
    rope_low_factor: Factor = 1.0
    rope_high_factor: Factor = 4.0
    # Tokens of the context before scaling; 0 for linear, which does not depend on it.
    rope_original_length: Annotated[int, Range(0, 2**24)] = 0
    # Biases of the projections of attention: none, of q, k and v (Qwen2), of the output as well.
    attention_bias: Literal["none", "qkv", "all"] = "none"

    def check_relations(self) -> None:
        """Raises FieldError for RoPE that cannot be computed, beside the checks of every family."""
        super().check_relations()
        if self.head_dim % 2:
            problem = f" is {self.head_dim}: it must be even, since RoPE rotates pairs"
            raise FieldError(("head_dim",), problem)
        if self.rope_type != "linear" and not self.rope_original_length:
            needed = f"with rope_type {self.rope_type} it must be the context before scaling"
            raise FieldError(("rope_original_length",), f" is 0: {needed}, in tokens")
        if self.rope_type == "llama3" and self.rope_low_factor >= self.rope_high_factor:
            least = f"it must be above rope_low_factor, which is {self.rope_low_factor:g}"
            raise FieldError(("rope_high_factor",), f" is {self.rope_high_factor:g}: {least}")
        if self.rope_type == "dynamic" and self.head_dim == 2:
            problem = " is 2: dynamic RoPE divides by head_dim - 2, so it must be 4 or more"
            raise FieldError(("head_dim",), problem)
