"""The tensors of published GPT weights, and where each is in our parameters."""

from __future__ import annotations

from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.published import Packing, Place

# Published tensors of a block, by the end of their dotted name in our parameters.
BLOCK = {
    "attention_norm": Place("attention_norm.scale", (0,)),
    "attention_norm_bias": Place("attention_norm.bias", (0,)),
    "q": Place("attention.q", (1, 2, 0), 2),
    "q_bias": Place("attention.q_bias", (0, 1), 2),
    "k": Place("attention.kv", (1, 2, 3, 0), 3, 1, 0, 1),
    "k_bias": Place("attention.kv_bias", (0, 1, 2), 3, 0, 0, 1),
    "v": Place("attention.kv", (1, 2, 3, 0), 3, 1, 1, 1),
    "v_bias": Place("attention.kv_bias", (0, 1, 2), 3, 0, 1, 1),
    "o": Place("attention.out", (2, 0, 1)),
    "o_bias": Place("attention.out_bias", (0,)),
    "ffn_norm": Place("ffn_norm.scale", (0,)),
    "ffn_norm_bias": Place("ffn_norm.bias", (0,)),
    "up": Place("ffn.up", (1, 0)),
    "up_bias": Place("ffn.up_bias", (0,)),
    "down": Place("ffn.down", (1, 0)),
    "down_bias": Place("ffn.down_bias", (0,)),
}
TOP = "top_"  # before the names of the top query layer's tensors

# Names of transformers' tensors, the same for gpt2 and gpt_bigcode.
TRANSFORMERS_NAMES = {
    "embedding": "transformer.wte.weight",
    "positions": "transformer.wpe.weight",
    "attention_norm": "transformer.h.{}.ln_1.weight",
    "attention_norm_bias": "transformer.h.{}.ln_1.bias",
    "q": "transformer.h.{}.attn.c_attn.weight",
    "q_bias": "transformer.h.{}.attn.c_attn.bias",
    "k": "transformer.h.{}.attn.c_attn.weight",
    "k_bias": "transformer.h.{}.attn.c_attn.bias",
    "v": "transformer.h.{}.attn.c_attn.weight",
    "v_bias": "transformer.h.{}.attn.c_attn.bias",
    "o": "transformer.h.{}.attn.c_proj.weight",
    "o_bias": "transformer.h.{}.attn.c_proj.bias",
    "ffn_norm": "transformer.h.{}.ln_2.weight",
    "ffn_norm_bias": "transformer.h.{}.ln_2.bias",
    "up": "transformer.h.{}.mlp.c_fc.weight",
    "up_bias": "transformer.h.{}.mlp.c_fc.bias",
    "down": "transformer.h.{}.mlp.c_proj.weight",
    "down_bias": "transformer.h.{}.mlp.c_proj.bias",
    "final_norm": "transformer.ln_f.weight",
    "final_norm_bias": "transformer.ln_f.bias",
    "head": "lm_head.weight",
}

# Names of CodeGeeX's tensors: those of a layer, and the others.
CODEGEEX_BLOCK = {
    "attention_norm": "input_layernorm.weight",
    "attention_norm_bias": "input_layernorm.bias",
    "q": "attention.query.weight",
    "q_bias": "attention.query.bias",
    "k": "attention.key.weight",
    "k_bias": "attention.key.bias",
    "v": "attention.value.weight",
    "v_bias": "attention.value.bias",
    "o": "attention.dense.weight",
    "o_bias": "attention.dense.bias",
    "ffn_norm": "post_attention_layernorm.weight",
    "ffn_norm_bias": "post_attention_layernorm.bias",
    "up": "mlp.dense_h_to_4h.weight",
    "up_bias": "mlp.dense_h_to_4h.bias",
    "down": "mlp.dense_4h_to_h.weight",
    "down_bias": "mlp.dense_4h_to_h.bias",
}
CODEGEEX_NAMES = {
    "embedding": "embedding.word_embeddings.weight",
    "positions": "embedding.position_embeddings.weight",
    "final_norm": "transformer.final_layernorm.weight",
    "final_norm_bias": "transformer.final_layernorm.bias",
    "top_queries": "topQueryEmbedding.top_query_embeddings.weight",
}
for _name, _end in CODEGEEX_BLOCK.items():
    CODEGEEX_NAMES[_name] = f"transformer.layers.{{}}.{_end}"
    CODEGEEX_NAMES[TOP + _name] = f"transformer.topQueryLayer.{_end}"


def places(model: GPTConfig) -> dict[str, Place]:
    """Returns the place of every published tensor."""
    places = {
        "embedding": Place("embedding", (0, 1)),
        "positions": Place("positions", (0, 1)),
    }
    for name, place in BLOCK.items():
        places[name] = place.under("layers")
    places["final_norm"] = Place("final_norm.scale", (0,))
    places["final_norm_bias"] = Place("final_norm.bias", (0,))
    if model.top_query:
        places["top_queries"] = Place("top_queries", (0, 1))
        for name, place in BLOCK.items():
            places[TOP + name] = place.under("top_layer")
    if not model.tied_embeddings:
        places["head"] = Place("head", (1, 0))
    return places


def packing(model: GPTConfig, model_type: str) -> dict[str, Packing]:
    """Returns how transformers' files of a type, gpt2 or gpt_bigcode, store tensors.

    Tensors that are not listed are stored as they are.
    """
    is_gpt2 = model_type == "gpt2"
    # Without multi-query attention, gpt_bigcode has each head's query, key and value together.
    is_mixed = not is_gpt2 and model.n_kv_heads == model.n_heads
    groups = model.n_heads if is_mixed else 1
    packings = {}
    for name in ("q", "k", "v"):
        packings[name] = Packing(("q", "k", "v"), groups, transposed=is_gpt2)
        packings[f"{name}_bias"] = Packing(("q_bias", "k_bias", "v_bias"), groups)
    # GPT-2's layers are 1-D convolutions, whose weights have the inputs first.
    for name in ("o", "up", "down") if is_gpt2 else ():
        packings[name] = Packing((name,), transposed=True)
    return packings
