"""Llama as a `Family`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codellama_jax.models.family import Family
from codellama_jax.models.llama.config import LlamaConfig

if TYPE_CHECKING:
    import flax.linen as nn
    import jax

    from codellama_jax.models.decoding import Cache
    from codellama_jax.models.published import Place
    from codellama_jax.system.settings import Settings


class LlamaFamily(Family[LlamaConfig]):
    """Llama, Llama 2 and Code Llama. Methods: see `Family`."""

    model_types = ("llama",)

    def module(self, config: LlamaConfig) -> nn.Module:
        from codellama_jax.models.llama.model import Llama

        return Llama(config)

    def positions(self, config: LlamaConfig) -> str:
        scaling = f" / {config.rope_scaling:g}" if config.rope_scaling != 1 else ""
        return f"RoPE base {config.rope_theta:.0e}{scaling}"

    def parameter_count(self, config: LlamaConfig) -> int:
        norms = (2 * config.n_layers + 1) * config.d_model
        embedding = 0 if config.tied_embeddings else config.vocab_size * config.d_model
        return embedding + self.multiplied_parameters(config) + norms

    def multiplied_parameters(self, config: LlamaConfig) -> int:
        c = config
        qkv = c.d_model * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
        out = c.n_heads * c.head_dim * c.d_model
        feed_forward = 3 * c.d_model * c.d_ff
        return c.n_layers * (qkv + out + feed_forward) + c.vocab_size * c.d_model

    def decays(self, path: str) -> bool:
        return not path.endswith("scale")  # the scales of the norms

    def prepare(self, config: LlamaConfig, params: dict) -> Any:
        from codellama_jax.models.llama import decoder

        return decoder.prepare(config, params)

    def weight_specs(self, config: LlamaConfig) -> Any:
        from codellama_jax.models.llama import decoder

        return decoder.weight_specs(config)

    def prefill(
        self, config: LlamaConfig, weights: Any, tokens_BT: jax.Array, lengths_B: jax.Array
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        from codellama_jax.models.llama import decoder

        return decoder.prefill(config, weights, tokens_BT, lengths_B)

    def step(
        self,
        config: LlamaConfig,
        weights: Any,
        cache: Cache,
        tokens_B: jax.Array,
        positions_B: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        from codellama_jax.models.llama import decoder

        return decoder.step(config, weights, cache, tokens_B, positions_B)

    def places(self, config: LlamaConfig) -> dict[str, Place]:
        from codellama_jax.models.llama import published

        return published.places(config)

    def transformers_names(self, config: LlamaConfig) -> dict[str, str]:
        from codellama_jax.models.llama import published

        return published.TRANSFORMERS_NAMES

    def config_from_transformers(self, settings: Settings) -> LlamaConfig:
        from codellama_jax.models.llama import config_json

        return config_json.model_config(settings)

    def config_to_transformers(self, config: LlamaConfig) -> dict[str, Any]:
        from codellama_jax.models.llama import config_json

        return config_json.config_of(config)
