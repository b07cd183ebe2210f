"""Llama as a `Family`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from codellama_jax.models.family import PackageFamily
from codellama_jax.models.llama.config import LlamaConfig

if TYPE_CHECKING:
    import flax.linen as nn


class LlamaFamily(PackageFamily[LlamaConfig]):
    """Llama, Code Llama, and models of their shape such as Qwen2. Methods: see `Family`."""

    model_types = ("llama", "qwen2")
    matmul_inputs = MappingProxyType({"qkv": 1, "out": 3, "gate_up": 1, "down": 1})

    def module(self, config: LlamaConfig) -> nn.Module:
        from codellama_jax.models.llama.model import Llama

        return Llama(config)

    def positions(self, config: LlamaConfig) -> str:
        scaling = f" / {config.rope_scaling:g}" if config.rope_scaling != 1 else ""
        kind = f" {config.rope_type}" if config.rope_type != "linear" else ""
        return f"RoPE base {config.rope_theta:.0e}{kind}{scaling}"

    def depends_on_length(self, config: LlamaConfig) -> bool:
        # Linear and llama3 scaling turn by fixed angles; only dynamic scaling looks at the length.
        return config.rope_type == "dynamic"

    def parameter_count(self, config: LlamaConfig) -> int:
        c = config
        norms = (2 * c.n_layers + 1) * c.d_model
        embedding = 0 if c.tied_embeddings else c.vocab_size * c.d_model
        biases = 0
        if c.attention_bias != "none":
            biases += c.n_layers * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
        if c.attention_bias == "all":
            biases += c.n_layers * c.d_model
        return embedding + self.multiplied_parameters(c) + norms + biases

    def multiplied_parameters(self, config: LlamaConfig) -> int:
        c = config
        # Each key head has one key and one value projection beside its query heads.
        qkv = c.d_model * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
        out = c.n_heads * c.head_dim * c.d_model
        feed_forward = 3 * c.d_model * c.d_ff
        return c.n_layers * (qkv + out + feed_forward) + c.vocab_size * c.d_model

    def decays(self, path: str) -> bool:
        return not path.endswith(("scale", "bias"))

    def decoder(self) -> Any:
        from codellama_jax.models.llama import decoder

        return decoder

    def published(self) -> Any:
        from codellama_jax.models.llama import published

        return published

    def config_json(self) -> Any:
        from codellama_jax.models.llama import config_json

        return config_json
