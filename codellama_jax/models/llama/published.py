"""The tensors of published Llama weights, and where each is in our parameters."""

from __future__ import annotations

from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.published import Place

# Names of transformers' tensors.
TRANSFORMERS_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "o_bias": "model.layers.{}.self_attn.o_proj.bias",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}


def places(model: LlamaConfig) -> dict[str, Place]:
    """Returns the place of every published tensor.

    In our fused weight each key head has its G query heads, its key and its value, in that order.
    """
    G = model.n_heads // model.n_kv_heads
    parts = {"q": (0, G), "k": (G, 1), "v": (G + 1, 1)}  # start and size of each

    def gate_up(start: int) -> Place:
        return Place("layers.ffn.gate_up", (1, 2, 0), 2, 1, start, 1)

    places = {
        "embedding": Place("embedding", (0, 1)),
        "attention_norm": Place("layers.attention_norm.scale", (0,)),
    }
    for name, part in parts.items():
        places[name] = Place("layers.attention.qkv", (1, 2, 3, 0), 3, 2, *part)
        if model.attention_bias != "none":
            places[f"{name}_bias"] = Place("layers.attention.qkv_bias", (0, 1, 2), 3, 1, *part)
    if model.attention_bias == "all":
        places["o_bias"] = Place("layers.attention.out_bias", (0,))
    places |= {
        "o": Place("layers.attention.out", (3, 0, 1, 2)),
        "ffn_norm": Place("layers.ffn_norm.scale", (0,)),
        "gate": gate_up(0),
        "up": gate_up(1),
        "down": Place("layers.ffn.down", (1, 0)),
        "final_norm": Place("final_norm.scale", (0,)),
    }
    if not model.tied_embeddings:
        places["head"] = Place("head", (1, 0))
    return places
