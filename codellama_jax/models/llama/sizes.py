"""Dimensions of the published models, and toy ones of the same shape."""

from typing import TypeVar

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError
from codellama_jax.models.llama.config import LlamaConfig

Model = TypeVar("Model", bound=ModelConfig)


def ffn_width(d_model: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Llama's SwiGLU width: 8/3 of the model width, scaled, rounded up to a multiple."""
    width = int(multiplier * int(8 * d_model / 3))
    return multiple_of * -(-width // multiple_of)


# Rozière et al. 2023 and the released params.json; vocabularies are those of the base models.
CODE_LLAMA = {
    "7b": LlamaConfig(
        32_016,
        d_model=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_dim=128,
        d_ff=ffn_width(4096),
    ),
    "13b": LlamaConfig(
        32_016,
        d_model=5120,
        n_layers=40,
        n_heads=40,
        n_kv_heads=40,
        head_dim=128,
        d_ff=ffn_width(5120),
    ),
    "34b": LlamaConfig(
        32_000,
        d_model=8192,
        n_layers=48,
        n_heads=64,
        n_kv_heads=8,
        head_dim=128,
        d_ff=ffn_width(8192),
    ),
    "70b": LlamaConfig(
        32_016,
        d_model=8192,
        n_layers=80,
        n_heads=64,
        n_kv_heads=8,
        head_dim=128,
        d_ff=ffn_width(8192, 4096, 1.3),
    ),
}


TOY = {
    "toy": LlamaConfig(
        1024,
        d_model=128,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        head_dim=32,
        d_ff=352,
        compute_dtype="float32",
        remat="none",
    )
}


# Between the toy and the published sizes, for one GPU or a patient CPU: 8.0M parameters.
SMALL = {
    "small": LlamaConfig(
        4096,
        d_model=256,
        n_layers=8,
        n_heads=8,
        n_kv_heads=4,
        head_dim=32,
        d_ff=704,
        compute_dtype="float32",
        remat="none",
    )
}


def choose(sizes: dict[str, Model], scale: str) -> Model:
    """Returns the size of that name. Raises UserError listing the names there are."""
    if scale not in sizes:
        raise UserError(f"no scale {scale}: there are {', '.join(sizes)}")
    return sizes[scale]
