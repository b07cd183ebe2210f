"""GGUF metadata and tensor names of a Llama or Qwen2, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Literal

import numpy as np

from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.config_json import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_ROWS,
    MAX_WIDTH,
    even_width,
    key_heads,
)
from codellama_jax.models.llama.rope_json import MAX_FACTOR, MAX_THETA
from codellama_jax.system.settings import Settings

# Values of general.architecture, with which keys begin. In files of a `llama`, the rows of q and k
# are in Meta's order (`weights/rope_order.py`).
LLAMA, QWEN2 = "llama", "qwen2"
MAX_CONTEXT = 1_000_000_000  # tokens; no model has so many, so a larger value is damage
TENSOR_NAMES = {
    "embedding": "token_embd.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "o": "blk.{}.attn_output.weight",
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "q_bias": "blk.{}.attn_q.bias",
    "k_bias": "blk.{}.attn_k.bias",
    "v_bias": "blk.{}.attn_v.bias",
    "o_bias": "blk.{}.attn_output.bias",
}
# Not a weight: by how much llama3 scaling divides each frequency of RoPE (`gguf_rope.py`).
ROPE_FACTORS = "rope_freqs.weight"
# Keys of models that llama.cpp runs under the same architecture and this project does not.
UNSUPPORTED = ("expert_count", "attention.sliding_window", "attention.scale", "logit_scale")


def architecture_settings(metadata: dict[str, Any], file: str) -> Settings:
    """Returns the metadata of the architecture, with keys without its prefix.

    Raises UserError for another architecture.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in (LLAMA, QWEN2):
        settings = Settings(file, metadata)
        raise settings.error("general.architecture", f"{LLAMA!r} or {QWEN2!r}")
    prefix = f"{architecture}."
    values = {}
    for key, value in metadata.items():
        if key.startswith(prefix):
            values[key.removeprefix(prefix)] = value
    return Settings(file, values, prefix)


def model_config(settings: Settings, vocab_size: int, tensors: Container[str]) -> LlamaConfig:
    """Returns the model that the metadata of an architecture describes, without llama3 scaling.

    Args:
      settings: the result of `architecture_settings`.
      vocab_size: the rows of the embedding.
      tensors: the names of the tensors, which decide about biases and a separate head.

    Raises UserError naming the key for a value out of its range and for what is not implemented.
    """
    for key in UNSUPPORTED:
        if settings.values.get(key):
            raise settings.error(key, "absent or 0: it is not implemented")
    width = settings.integer("embedding_length", MAX_WIDTH)
    heads = settings.integer("attention.head_count", MAX_HEADS)
    return LlamaConfig(
        vocab_size=vocab_size,
        d_model=width,
        n_layers=settings.integer("block_count", MAX_LAYERS),
        n_heads=heads,
        n_kv_heads=key_heads(settings, "attention.head_count_kv", heads),
        head_dim=_head_dim(settings, width // heads),
        d_ff=settings.integer("feed_forward_length", MAX_ROWS),
        norm_eps=_shortest(settings.real("attention.layer_norm_rms_epsilon", 1)),
        rope_theta=_shortest(settings.real("rope.freq_base", MAX_THETA, default=1e4)),
        rope_scaling=_linear_factor(settings),
        tied_embeddings=TENSOR_NAMES["head"] not in tensors,
        attention_bias=_attention_bias(settings, tensors),
    )


def _attention_bias(settings: Settings, tensors: Container[str]) -> Literal["none", "qkv", "all"]:
    """Returns which projections have biases: a qwen2 always has those of q, k and v."""
    # GGUF has no field for biases: the tensors in the file decide.
    if settings.prefix == f"{QWEN2}." or TENSOR_NAMES["q_bias"].format(0) in tensors:
        return "all" if TENSOR_NAMES["o_bias"].format(0) in tensors else "qkv"
    return "none"


def context(settings: Settings) -> int:
    """Returns the longest sequence that the model was trained for, in tokens."""
    return settings.integer("context_length", MAX_CONTEXT, default=2048)


def _head_dim(settings: Settings, default: int) -> int:
    width = settings.integer("attention.key_length", MAX_WIDTH, default=max(1, default))
    even_width(settings, f"{settings.prefix}attention.key_length", width)
    # llama.cpp allows other widths for values and a rotation of a part of the head; both are not
    # implemented here.
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.integer(key, MAX_WIDTH, default=width) != width:
            raise settings.error(key, f"{width}, the width of a head")
    return width


def _linear_factor(settings: Settings) -> float:
    """Returns the factor of linear position interpolation, 1 for none."""
    kind = settings.values.get("rope.scaling.type", "linear")
    # Older files have the factor under another key.
    name = "rope.scaling.factor" if settings.has("rope.scaling.factor") else "rope.scale_linear"
    factor = settings.real(name, MAX_FACTOR, default=1.0)
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise settings.error("rope.scaling.type", "'none' or 'linear'")
    return _shortest(factor)


def _shortest(value: float) -> float:
    """Returns the number with the fewest digits that a 32-bit float of the file may stand for.

    A config.json of the same model has 1e-05, which the file holds as 9.999999747378752e-06.
    """
    return float(str(np.float32(value)))


def architecture_of(model: LlamaConfig) -> str:
    """Returns the architecture that a model is written as."""
    # llama.cpp applies llama3 scaling to a `llama` only, which may have biases as well.
    return QWEN2 if model.attention_bias == "qkv" and model.rope_type != "llama3" else LLAMA


def metadata_of(model: LlamaConfig, context: int) -> dict[str, Any]:
    """Returns the metadata of a model, with the architecture.

    `context` is the longest sequence in tokens. Numbers with a fraction are floats, others ints.
    """
    architecture = architecture_of(model)
    values: dict[str, Any] = {
        "block_count": model.n_layers,
        "context_length": context,
        "embedding_length": model.d_model,
        "feed_forward_length": model.d_ff,
        "attention.head_count": model.n_heads,
        "attention.head_count_kv": model.n_kv_heads,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        "attention.layer_norm_rms_epsilon": float(model.norm_eps),
        "rope.freq_base": float(model.rope_theta),
        "rope.dimension_count": model.head_dim,
        "vocab_size": model.vocab_size,
    }
    if model.rope_type == "linear" and model.rope_scaling != 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(model.rope_scaling)}
    prefixed = {f"{architecture}.{key}": value for key, value in values.items()}
    return {"general.architecture": architecture, **prefixed}
