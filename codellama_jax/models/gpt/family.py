"""GPT as a `Family`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codellama_jax.models.family import Family
from codellama_jax.models.gpt.config import GPTConfig

if TYPE_CHECKING:
    import flax.linen as nn
    import jax

    from codellama_jax.models.decoding import Cache
    from codellama_jax.models.published import Packing, Place
    from codellama_jax.system.settings import Settings


class GPTFamily(Family[GPTConfig]):
    """Codex, CodeGeeX, StarCoder, SantaCoder and PanGu-Coder. Methods: see `Family`."""

    model_types = ("gpt2", "gpt_bigcode")
    base_prefix = "transformer."

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
        vectors = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim + c.d_ff + 6 * c.d_model
        norms = self.attention_layers(c) * vectors + 2 * c.d_model
        return tables + self.multiplied_parameters(c) + norms

    def multiplied_parameters(self, config: GPTConfig) -> int:
        c = config
        attention = 2 * c.d_model * (c.n_heads + c.n_kv_heads) * c.head_dim
        layer = attention + 2 * c.d_model * c.d_ff
        return self.attention_layers(c) * layer + c.vocab_size * c.d_model

    def decays(self, path: str) -> bool:
        return not path.endswith(("scale", "bias"))

    def prepare(self, config: GPTConfig, params: dict) -> Any:
        from codellama_jax.models.gpt import decoder

        return decoder.prepare(config, params)

    def weight_specs(self, config: GPTConfig) -> Any:
        from codellama_jax.models.gpt import decoder

        return decoder.weight_specs(config)

    def prefill(
        self, config: GPTConfig, weights: Any, tokens_BT: jax.Array, lengths_B: jax.Array
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        from codellama_jax.models.gpt import decoder

        return decoder.prefill(config, weights, tokens_BT, lengths_B)

    def step(
        self,
        config: GPTConfig,
        weights: Any,
        cache: Cache,
        tokens_B: jax.Array,
        positions_B: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        from codellama_jax.models.gpt import decoder

        return decoder.step(config, weights, cache, tokens_B, positions_B)

    def places(self, config: GPTConfig) -> dict[str, Place]:
        from codellama_jax.models.gpt import published

        return published.places(config)

    def transformers_names(self, config: GPTConfig) -> dict[str, str]:
        from codellama_jax.models.gpt import published

        return published.TRANSFORMERS_NAMES

    def packing(self, config: GPTConfig, model_type: str) -> dict[str, Packing]:
        from codellama_jax.models.gpt import published

        return published.packing(config, model_type)

    def config_from_transformers(self, settings: Settings) -> GPTConfig:
        from codellama_jax.models.gpt import config_json

        return config_json.model_config(settings)

    def config_to_transformers(self, config: GPTConfig) -> dict[str, Any]:
        from codellama_jax.models.gpt import config_json

        return config_json.config_of(config)
