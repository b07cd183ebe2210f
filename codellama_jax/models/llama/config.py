"""The config of Llama, Llama 2 and Code Llama."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from codellama_jax.checked import FieldError, Range
from codellama_jax.config import ModelConfig


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A Llama transformer: RMSNorm, rotary position embeddings (RoPE), SwiGLU, no biases."""

    family: ClassVar[str] = "llama"
    adjustable: ClassVar[frozenset[str]] = ModelConfig.adjustable | {"rope_theta", "rope_scaling"}

    rope_theta: Annotated[float, Range(1, 1e15)] = 1e4
    # Linear position interpolation: positions are divided by this.
    rope_scaling: Annotated[float, Range(0, 1e6, open_least=True)] = 1.0

    def check_relations(self) -> None:
        """Raises FieldError for an odd head width, beside the checks of every family."""
        super().check_relations()
        if self.head_dim % 2:
            problem = f" is {self.head_dim}: it must be even, since RoPE rotates pairs"
            raise FieldError(("head_dim",), problem)
