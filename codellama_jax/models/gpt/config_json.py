"""transformers' config.json of gpt2 and gpt_bigcode: the model that it describes, and back."""

from __future__ import annotations

from typing import Any, Literal

from codellama_jax.errors import UserError
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.system.settings import Settings

# Bounds that no model reaches: what is beyond them is damage, and would fill memory.
MAX_ROWS = 10_000_000
MAX_WIDTH = 1_000_000
MAX_LAYERS = 10_000
MAX_HEADS = 16_384
MAX_POSITIONS = 2**24
# transformers has three names for the tanh approximation of GELU.
ACTIVATIONS: dict[str, Literal["gelu_tanh", "quick_gelu"]] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def model_config(config: Settings) -> GPTConfig:
    """Returns the model that a config.json describes.

    `attn_pdrop` is checked but not kept: the fused kernels of attention have no dropout, and it
    changes no result of a trained model. To train with it, set `attention_dropout`.

    Raises UserError naming the field for a value out of its range and for what is not implemented.
    """
    is_gpt2 = config.values["model_type"] == "gpt2"
    _check_supported(config)
    _dropout(config, "attn_pdrop")
    width = config.integer("n_embd", MAX_WIDTH)
    heads = config.integer("n_head", MAX_HEADS)
    if width % heads:
        raise config.error("n_head", f"a divisor of n_embd, which is {width}")
    # A gpt2 has no such field, and its heads each have their own key and value.
    is_multi_query = not is_gpt2 and _flag(config, "multi_query", default=True)
    return GPTConfig(
        vocab_size=config.integer("vocab_size", MAX_ROWS),
        d_model=width,
        n_layers=config.integer("n_layer", MAX_LAYERS),
        n_heads=heads,
        n_kv_heads=1 if is_multi_query else heads,
        head_dim=width // heads,
        d_ff=config.integer("n_inner", MAX_ROWS, default=4 * width),
        norm_eps=config.real("layer_norm_epsilon", 1, default=1e-5),
        tied_embeddings=_flag(config, "tie_word_embeddings", default=True),
        n_positions=config.integer("n_positions", MAX_POSITIONS, default=1024),
        activation=_activation(config, "gelu_new" if is_gpt2 else "gelu_pytorch_tanh"),
        init_std=config.real("initializer_range", 100, default=0.02),
        dropout=_dropout(config, "resid_pdrop"),
        embedding_dropout=_dropout(config, "embd_pdrop"),
    )


def _dropout(config: Settings, name: str) -> float:
    """Returns a share that training drops; transformers' default is 0.1."""
    value = config.values.get(name)
    value = 0.1 if value is None else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1:
        raise config.error(name, "a number from 0 to below 1")
    return float(value)


def _flag(config: Settings, name: str, default: bool) -> bool:
    return config.flag(name) if config.has(name) else default


def _activation(config: Settings, default: str) -> Literal["gelu_tanh", "quick_gelu"]:
    name = config.values.get("activation_function", default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise config.error("activation_function", " or ".join(map(repr, ACTIVATIONS)))
    return ACTIVATIONS[name]


def _check_supported(config: Settings) -> None:
    """Raises UserError for a setting that is not implemented and changes the model's results."""
    if not _flag(config, "scale_attn_weights", default=True):
        raise config.error("scale_attn_weights", "true")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if config.flag(name):
            raise config.error(name, "false")
    # SantaCoder was first published as a gpt2 with separate code; gpt_bigcode is the same model.
    if config.values.get("attention_head_type", "multihead") != "multihead":
        raise config.error("attention_head_type", "'multihead', or the model_type gpt_bigcode")
    if config.has("quantization_config"):
        raise config.error("quantization_config", "null: quantized weights are not read")


def config_of(c: GPTConfig) -> dict[str, Any]:
    """Returns the config.json of a model: gpt_bigcode with multi-query attention, gpt2 without.

    Raises UserError for a model that transformers does not have.
    """
    is_multi_query = c.n_kv_heads == 1 < c.n_heads
    problem = ""
    if c.top_query:
        problem = "has a top query layer"
    elif not is_multi_query and c.n_kv_heads != c.n_heads:
        problem = f"has {c.n_kv_heads} key heads for {c.n_heads} query heads"
    elif c.head_dim * c.n_heads != c.d_model:
        problem = f"has {c.n_heads} heads of width {c.head_dim} at a width of {c.d_model}"
    if problem:
        raise UserError(f"the model {problem}, which transformers' GPT models do not have")
    # Each type's default name of the same function.
    activation = "gelu_pytorch_tanh" if is_multi_query else "gelu_new"
    if c.activation == "quick_gelu":
        activation = "quick_gelu"
    kind = "GPTBigCode" if is_multi_query else "GPT2"
    return {
        "architectures": [f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"],
        "model_type": "gpt_bigcode" if is_multi_query else "gpt2",
        "vocab_size": c.vocab_size,
        "n_embd": c.d_model,
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_inner": c.d_ff,
        "n_positions": c.n_positions,
        "activation_function": activation,
        "layer_norm_epsilon": c.norm_eps,
        "initializer_range": c.init_std,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.embedding_dropout,
        "attn_pdrop": c.attention_dropout,
        "tie_word_embeddings": c.tied_embeddings,
        **({"multi_query": True} if is_multi_query else {}),
    }
