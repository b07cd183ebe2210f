"""transformers' config.json: the model that it describes, and the one that describes a model."""

from __future__ import annotations

from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.system.settings import Settings

# Bounds that no model reaches: what is beyond them is damage, and would fill memory.
MAX_ROWS = 10_000_000
MAX_WIDTH = 1_000_000
MAX_LAYERS = 10_000
MAX_HEADS = 100_000
MAX_THETA = 1e12
MAX_FACTOR = 10_000
ROPE_SETTINGS = {"rope_type", "type", "factor", "rope_theta", "original_max_position_embeddings"}


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
        rope_theta=_rope_theta(config),
        rope_scaling=_rope_scaling(config),
        tied_embeddings=config.flag("tie_word_embeddings"),
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


def _check_supported(config: Settings) -> None:
    """Raises UserError for a setting that is not implemented and changes the model's results."""
    if config.has("hidden_act") and config.values["hidden_act"] not in ("silu", "swish"):
        raise config.error("hidden_act", "'silu'")
    for name in ("attention_bias", "mlp_bias"):
        if config.flag(name):
            raise config.error(name, "false")
    if config.has("quantization_config"):
        raise config.error("quantization_config", "null: quantized weights are not read")
    rope = config.inner("rope_parameters")
    for settings in (config, rope, config.inner("rope_scaling")):
        if settings.has("partial_rotary_factor") and settings.real("partial_rotary_factor", 1) != 1:
            raise settings.error("partial_rotary_factor", "1")


def _rope_theta(config: Settings) -> float:
    """Returns the base of RoPE: older files have it at the top, newer ones in rope_parameters."""
    places = (config.inner("rope_parameters"), config.inner("rope_scaling"), config)
    thetas = {}
    for place in places:
        if place.has("rope_theta"):
            thetas[f"{place.prefix}rope_theta"] = place.real("rope_theta", MAX_THETA)
    if len(set(thetas.values())) > 1:
        shown = " and ".join(f"{name} is {theta:g}" for name, theta in thetas.items())
        raise UserError(f"{config.file}: {shown}: they must be equal")
    return next(iter(thetas.values()), 1e4)


def _rope_scaling(config: Settings) -> float:
    """Returns the factor of linear position interpolation, 1 for none."""
    scalings = [config.inner("rope_parameters"), config.inner("rope_scaling")]
    factors = {}
    for scaling in scalings:
        if scaling.values:
            factors[scaling.prefix.rstrip(".")] = _linear_factor(scaling)
    if len(set(factors.values())) > 1:
        shown = " and ".join(f"{name} scales by {factor:g}" for name, factor in factors.items())
        raise UserError(f"{config.file}: {shown}: they must be equal")
    return next(iter(factors.values()), 1.0)


def _linear_factor(scaling: Settings) -> float:
    unknown = sorted(set(filter(scaling.has, scaling.values)) - ROPE_SETTINGS)
    kinds = []
    for name in ("rope_type", "type"):
        if scaling.has(name):
            kinds.append(scaling.values[name])
            if kinds[-1] not in ("default", "linear") or kinds[0] != kinds[-1]:
                raise scaling.error(name, "'default' or 'linear', and rope_type and type equal")
    if unknown and unknown != ["partial_rotary_factor"]:
        raise scaling.error(unknown[0], "absent: linear scaling has no such setting")
    if kinds and kinds[0] == "linear":
        return scaling.real("factor", MAX_FACTOR)
    if scaling.real("factor", MAX_FACTOR, default=1.0) != 1:
        needed = "absent, or beside it rope_type must be 'linear'"
        raise scaling.error("factor", needed)
    return 1.0


def config_of(c: LlamaConfig) -> dict[str, Any]:
    """Returns the config.json of a model, in the names that every version of transformers reads."""
    linear = {"type": "linear", "rope_type": "linear", "factor": c.rope_scaling}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "rope_scaling": linear if c.rope_scaling != 1 else None,
        "tie_word_embeddings": c.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
    }
