"""GPT as a `Family`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from codellama_jax.models.family import PackageFamily
from codellama_jax.models.gpt.config import GPTConfig

if TYPE_CHECKING:
    import flax.linen as nn

    from codellama_jax.models.published import Packing


class GPTFamily(PackageFamily[GPTConfig]):
    """Codex, CodeGeeX, StarCoder, SantaCoder and PanGu-Coder. Methods: see `Family`."""

    model_types = ("gpt2", "gpt_bigcode")
    base_prefix = "transformer."
    matmul_inputs = MappingProxyType({"q": 1, "kv": 1, "out": 2, "up": 1, "down": 1})

    def module(self, config: GPTConfig) -> nn.Module:
        from codellama_jax.models.gpt.model import GPT

        return GPT(config)

    def positions(self, config: GPTConfig) -> str:
        queries = ", top query layer" if config.top_query else ""
        return f"{config.n_positions:,} learned{queries}"

    def attention_layers(self, config: GPTConfig) -> int:
        return config.n_layers + config.top_query

    def parameter_count(self, config: GPTConfig) -> int:
        c = config
        tables = c.n_positions * c.d_model * (2 if c.top_query else 1)
        if not c.tied_embeddings:
            tables += c.vocab_size * c.d_model
        # Biases of q, k and v, of the up layer, and of the two layers that end in the residual
        # stream; scale and bias of two norms.
        layer_vectors = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim + c.d_ff + 6 * c.d_model
        # The last norm has a scale and a bias too.
        vectors = self.attention_layers(c) * layer_vectors + 2 * c.d_model
        return tables + self.multiplied_parameters(c) + vectors

    def multiplied_parameters(self, config: GPTConfig) -> int:
        c = config
        attention = 2 * c.d_model * (c.n_heads + c.n_kv_heads) * c.head_dim
        layer = attention + 2 * c.d_model * c.d_ff
        return self.attention_layers(c) * layer + c.vocab_size * c.d_model

    def decays(self, path: str) -> bool:
        return not path.endswith(("scale", "bias"))

    def decoder(self) -> Any:
        from codellama_jax.models.gpt import decoder

        return decoder

    def published(self) -> Any:
        from codellama_jax.models.gpt import published

        return published

    def config_json(self) -> Any:
        from codellama_jax.models.gpt import config_json

        return config_json

    def packing(self, config: GPTConfig, model_type: str) -> dict[str, Packing]:
        from codellama_jax.models.gpt import published

        return published.packing(config, model_type)
