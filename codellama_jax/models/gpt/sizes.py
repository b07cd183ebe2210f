"""Dimensions of the published models, and toy ones of the same shape."""

from typing import Any

from codellama_jax.models.gpt.config import GPTConfig


def shape(
    layers: int,
    width: int,
    heads: int,
    vocab: int,
    positions: int,
    multi_query: bool = False,
    top_query: bool = False,
    **fields: Any,
) -> GPTConfig:
    """Returns a model whose heads divide its width and whose feed-forward layer is 4 x as wide.

    Args:
      layers: as published, with the top query layer if there is one.
      width, heads, vocab, positions: D, N, V and P.
      multi_query: whether all query heads share one key head.
      top_query: whether the last layer is a top query layer.
      **fields: other fields of `GPTConfig`.
    """
    return GPTConfig(
        vocab,
        d_model=width,
        n_layers=layers - top_query,
        n_heads=heads,
        n_kv_heads=1 if multi_query else heads,
        head_dim=width // heads,
        d_ff=4 * width,
        tied_embeddings=True,
        n_positions=positions,
        top_query=top_query,
        **fields,
    )


# The names count non-embedding parameters, 12 L D^2. The shapes of 85m to 12b are those of GPT-3
# (Brown et al. 2020, Table 2.1); Chen et al. 2021 publish no shape, and 12m, 25m and 42m are
# derived: shapes of that size with heads of 64. The vocabulary is that of the public p50k_base.
# The context is known for 12b only. Attention is dense here, while GPT-3 alternates dense and
# locally banded layers.
CODEX_SHAPES = {
    "12m": (4, 512, 8),
    "25m": (8, 512, 8),
    "42m": (6, 768, 12),
    "85m": (12, 768, 12),
    "300m": (24, 1024, 16),
    "679m": (24, 1536, 16),
    "2.5b": (32, 2560, 32),
    "12b": (40, 5120, 40),
}
CODEX = {name: shape(*sizes, 50_281, 4096) for name, sizes in CODEX_SHAPES.items()}

# Zheng et al. 2023 and the released code. Its vocabulary is padded from 50,400 entries.
CODEGEEX = {
    "base": shape(12, 768, 12, 52_224, 2048, top_query=True, activation="quick_gelu"),
    "2.6b": shape(32, 2560, 32, 52_224, 2048, top_query=True, activation="quick_gelu"),
    "13b": shape(40, 5120, 40, 52_224, 2048, top_query=True, activation="quick_gelu"),
}

# Li et al. 2023. Initial weights of 15.5b are published as 0.01275, about 1 / sqrt(6144); the same
# rule gives those of 1b. PanGu-Coder2 is StarCoder 15.5b.
STARCODER = {
    "1b": shape(24, 2048, 16, 49_152, 8192, multi_query=True, init_std=2048**-0.5),
    "15.5b": shape(40, 6144, 48, 49_152, 8192, multi_query=True, init_std=0.01275),
}

# Ben Allal et al. 2023.
SANTACODER = {"1.1b": shape(24, 2048, 16, 49_280, 2048, multi_query=True, init_std=2048**-0.5)}

# Christopoulou et al. 2022: 2.6b is PanGu-alpha's shape, 317m a guess that fits the parameters of
# its layers. The vocabulary is PanGu-alpha's 40,000 entries, which the paper does not confirm, nor
# the activation.
PANGU_CODER = {
    "317m": shape(24, 1024, 16, 40_000, 1024, top_query=True, activation="quick_gelu"),
    "2.6b": shape(32, 2560, 32, 40_000, 1024, top_query=True, activation="quick_gelu"),
}

# Like StarCoder, and like CodeGeeX.
TOY = {
    "toy": shape(
        4,
        128,
        4,
        1024,
        1024,
        multi_query=True,
        init_std=128**-0.5,
        compute_dtype="float32",
        remat="none",
    ),
    "toy_top": shape(
        4,
        128,
        4,
        1024,
        1024,
        top_query=True,
        activation="quick_gelu",
        init_std=128**-0.5,
        compute_dtype="float32",
        remat="none",
    ),
}
