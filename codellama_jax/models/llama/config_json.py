"""transformers' config.json of llama and qwen2: the model that it describes, and back."""

from __future__ import annotations

from typing import Any, Literal

from codellama_jax.errors import UserError
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.rope_json import rope_fields, rope_settings
from codellama_jax.system.settings import Settings

# Bounds that no model reaches: what is beyond them is damage, and would fill memory.
MAX_ROWS = 10_000_000
MAX_WIDTH = 1_000_000
MAX_LAYERS = 10_000
MAX_HEADS = 100_000


def model_config(config: Settings) -> LlamaConfig:
    """Returns the model that a config.json describes.

    Raises UserError naming the field for a value out of its range and for what a Llama cannot be.
    """
    _check_supported(config)
    width = config.integer("hidden_size", MAX_WIDTH)
    heads = config.integer("num_attention_heads", MAX_HEADS)
    return LlamaConfig(
        vocab_size=config.integer("vocab_size", MAX_ROWS),
        d_model=width,
        n_layers=config.integer("num_hidden_layers", MAX_LAYERS),
        n_heads=heads,
        n_kv_heads=key_heads(config, "num_key_value_heads", heads),
        head_dim=_head_dim(config, width, heads),
        d_ff=config.integer("intermediate_size", MAX_ROWS),
        norm_eps=config.real("rms_norm_eps", 1, default=1e-6),
        tied_embeddings=config.flag("tie_word_embeddings"),
        attention_bias=_attention_bias(config),
        **rope_fields(config),
    )


def key_heads(config: Settings, name: str, heads: int) -> int:
    """Returns the number of key heads. Raises UserError unless each serves as many query heads."""
    count = config.integer(name, MAX_HEADS, default=heads)
    if heads % count:
        raise config.error(name, f"a divisor of the {heads} attention heads")
    return count


def even_width(config: Settings, name: str, width: int) -> int:
    """Returns the width of a head, which RoPE rotates in pairs. Raises UserError if it is odd."""
    if width < 1 or width % 2:
        raise UserError(f"{config.file}: {name} gives heads of width {width}: it must be even")
    return width


def _head_dim(config: Settings, width: int, heads: int) -> int:
    if config.has("head_dim"):
        return even_width(config, "head_dim", config.integer("head_dim", MAX_WIDTH))
    return even_width(config, "hidden_size / num_attention_heads", width // heads)


def _attention_bias(config: Settings) -> Literal["none", "qkv", "all"]:
    """Returns which projections have biases: a qwen2 always has those of q, k and v."""
    # Qwen2's config.json has no field for it: its code always adds these three biases.
    if config.values["model_type"] == "qwen2":
        return "qkv"
    return "all" if config.flag("attention_bias") else "none"


def _check_supported(config: Settings) -> None:
    """Raises UserError for a setting that is not implemented and changes the model's results."""
    # Refused instead of ignored: the weights would load and the model would write nonsense.
    if config.has("hidden_act") and config.values["hidden_act"] not in ("silu", "swish"):
        raise config.error("hidden_act", "'silu'")
    for name in ("mlp_bias", "use_sliding_window"):
        if config.flag(name):
            raise config.error(name, "false")
    kinds = config.values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise config.error("layer_types", "null, or 'full_attention' for every layer")
    if config.has("quantization_config"):
        raise config.error("quantization_config", "null: quantized weights are not read")
    rope = config.inner("rope_parameters")
    for settings in (config, rope, config.inner("rope_scaling")):
        if settings.has("partial_rotary_factor") and settings.real("partial_rotary_factor", 1) != 1:
            raise settings.error("partial_rotary_factor", "1")


def config_of(c: LlamaConfig) -> dict[str, Any]:
    """Returns the config.json of a model, in the names that every version of transformers reads.

    It is a qwen2 if q, k and v have biases and the output has none, otherwise a llama.
    """
    # transformers' llama has biases on all four projections or on none.
    is_qwen2 = c.attention_bias == "qkv"
    kind = "Qwen2" if is_qwen2 else "Llama"
    biases = {"attention_bias": c.attention_bias == "all", "mlp_bias": False}
    return {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        **rope_settings(c),
        "tie_word_embeddings": c.tied_embeddings,
        **({"use_sliding_window": False} if is_qwen2 else biases),
    }
