"""What a stage costs, computed from its config alone: parameters, FLOPs, bytes. XLA's own count misses what a scan repeats."""

from __future__ import annotations

from codellama_jax.config import ModelConfig, Stage

STATE_BYTES = 12  # a parameter in a checkpoint: fp32 weight and AdamW's two fp32 moments

# Dense bf16 FLOP/s of a device as JAX names its kind (the makers' data sheets); without one, no MFU is reported.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153e12,  # one of a chip's two cores, which JAX counts as a device
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def parameter_count(model: ModelConfig) -> int:
    """Parameters, embedding and head included."""
    c = model
    attention = (
        c.d_model * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim + c.n_heads * c.head_dim * c.d_model
    )
    layer = attention + 3 * c.d_model * c.d_ff + 2 * c.d_model
    return 2 * c.vocab_size * c.d_model + c.n_layers * layer + c.d_model


def flops_per_token(model: ModelConfig, seq_len: int, causal: bool) -> float:
    """FLOPs of forward and backward for one token of a row of `seq_len`, recomputation left out.

    Six for each weight that is multiplied (the embedding is looked up, not multiplied), and attention's two products over
    the row. `causal` counts only the half that the mask leaves; without it the whole square, as the PaLM paper does.
    """
    c = model
    weights = parameter_count(c) - c.vocab_size * c.d_model - (2 * c.n_layers + 1) * c.d_model
    attention = 12 * c.n_layers * c.n_heads * c.head_dim * seq_len
    return 6 * weights + attention / (2 if causal else 1)


def stage_tokens(stage: Stage) -> int:
    """Positions read by the whole stage, padding included."""
    return stage.steps * stage.data.batch_size * stage.data.seq_len


def stage_flops(stage: Stage) -> float:
    """FLOPs of the whole stage, causal attention."""
    return stage_tokens(stage) * flops_per_token(stage.model, stage.data.seq_len, causal=True)


def checkpoint_bytes(model: ModelConfig) -> int:
    """Bytes of one checkpoint."""
    return STATE_BYTES * parameter_count(model)
