"""Meta's params.json: the Llama that it describes, and the one that describes a Llama."""

from __future__ import annotations

from typing import Any

from codellama_jax.errors import UserError, name_list
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.config_json import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_WIDTH,
    even_width,
    key_heads,
)
from codellama_jax.models.llama.rope_json import MAX_THETA
from codellama_jax.models.llama.sizes import ffn_width
from codellama_jax.system.settings import Settings

MAX_MULTIPLIER = 1000
# What published files hold beside the model's sizes, for the code that serves them.
SERVING = {"max_seq_len", "max_batch_size", "model_parallel_size"}
KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"),
    *("ffn_dim_multiplier", "norm_eps", "rope_theta", "use_scaled_rope"),
    *SERVING,
}


def model_config(params: Settings, rows: int) -> LlamaConfig:
    """Returns the model of a params.json whose output head has `rows` rows.

    Its vocab_size may be -1, for the rows of the head. Raises UserError naming the field for a
    value out of its range and for what a Llama 2 cannot be.
    """
    _check_supported(params)
    # Published files have -1: the size is that of the tokenizer.
    if params.values.get("vocab_size", -1) not in (-1, rows):
        raise params.error("vocab_size", f"-1 or the {rows:,} rows of output.weight")
    width = params.integer("dim", MAX_WIDTH)
    count = params.integer("n_heads", MAX_HEADS)
    multiple = params.integer("multiple_of", MAX_WIDTH)
    multiplier = params.real("ffn_dim_multiplier", MAX_MULTIPLIER, default=1.0)
    return LlamaConfig(
        vocab_size=rows,
        d_model=width,
        n_layers=params.integer("n_layers", MAX_LAYERS),
        n_heads=count,
        n_kv_heads=key_heads(params, "n_kv_heads", count),
        head_dim=even_width(params, "dim / n_heads", width // count),
        d_ff=ffn_width(width, multiple, multiplier),
        norm_eps=params.real("norm_eps", 1),
        rope_theta=params.real("rope_theta", MAX_THETA, default=1e4),
    )


def _check_supported(params: Settings) -> None:
    """Raises UserError for a setting that is not implemented and changes the model's results."""
    if params.flag("use_scaled_rope"):
        # The factor is 8 in Llama 3.1 and 32 in the small models of 3.2.
        fix = "Llama 3.1's scaling has no factor here, import the model from transformers' files"
        raise params.error("use_scaled_rope", f"false: {fix}")
    # A setting that is 0, false or empty changes nothing, and is let through.
    unknown = sorted(name for name in set(params.values) - KNOWN if params.values[name])
    if unknown:
        fix = "remove it if it does not change what the model computes"
        raise UserError(f"{params.file}: {name_list(unknown)}: not a setting of Llama 2; {fix}")


def params_of(c: LlamaConfig) -> dict[str, Any]:
    """Returns a params.json from which Meta's rule gives this width of the feed-forward layer."""
    # Half a unit above the exact ratio, so that rounding down in Meta's rule gives the width
    # itself.
    multiple, multiplier = 1, (c.d_ff + 0.5) / int(8 * c.d_model / 3)
    # Rather the numbers of the published files, where they give the same width.
    for published in ((4096, 1.3), (256, 1.0)):
        if ffn_width(c.d_model, *published) == c.d_ff:
            multiple, multiplier = published
    return {
        "dim": c.d_model,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "multiple_of": multiple,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "vocab_size": -1,
    }
