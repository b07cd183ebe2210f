"""The cost of a stage, computed from its config alone: parameters, FLOPs, bytes.

XLA's own count of FLOPs counts the body of a scan once, so it cannot be used here.
"""

from __future__ import annotations

from codellama_jax.config import ModelConfig, Stage
from codellama_jax.models.family import family_of

STATE_BYTES = 12  # a parameter in a checkpoint: fp32 weight and AdamW's two fp32 moments

# Dense bf16 FLOP/s of a device as JAX names its kind (the makers' data sheets). No MFU is reported
# for a device that is not listed.
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
    """Returns the number of parameters, embedding and head included."""
    return family_of(model).parameter_count(model)


def flops_per_token(model: ModelConfig, seq_len: int, causal: bool) -> float:
    """Returns the FLOPs of forward and backward pass per token, rematerialization left out.

    Six for each weight that is multiplied, and attention's two matmuls over the sequence of
    `seq_len` tokens. `causal` counts only the half that the mask leaves; without it the full
    square counts, as in the PaLM paper (Chowdhery et al. 2022, appendix B).
    """
    attention = 12 * model.n_layers * model.n_heads * model.head_dim * seq_len
    weights = family_of(model).multiplied_parameters(model)
    return 6 * weights + attention / (2 if causal else 1)


def stage_tokens(stage: Stage) -> int:
    """Returns the positions that a stage reads in all its steps, padding included."""
    return stage.steps * stage.data.batch_size * stage.data.seq_len


def stage_flops(stage: Stage) -> float:
    """Returns the FLOPs of all steps of a stage, with causal attention."""
    return stage_tokens(stage) * flops_per_token(stage.model, stage.data.seq_len, causal=True)


def checkpoint_bytes(model: ModelConfig) -> int:
    """Returns the bytes of one checkpoint."""
    return STATE_BYTES * parameter_count(model)
