"""The cost of a stage, computed from its config alone: parameters, FLOPs and bytes.

XLA's own FLOP count is not used: it counts the body of a `lax.scan` once, however often it runs.
"""

from __future__ import annotations

from codellama_jax.config import ModelConfig, Stage
from codellama_jax.models.family import family_of

# Bytes per parameter in a checkpoint: the fp32 weight and AdamW's two fp32 moments.
STATE_BYTES = 12


def parameter_count(model: ModelConfig) -> int:
    """Returns the number of parameters, including the embedding and the output head."""
    return family_of(model).parameter_count(model)


def flops_per_token(model: ModelConfig, seq_len: int, causal: bool) -> float:
    """Returns the FLOPs per token of a forward and a backward pass, without rematerialization.

    The formula is that of the PaLM paper (Chowdhery et al. 2022, appendix B): six FLOPs for each
    weight of a matmul, and 12 x layers x heads x head dim x `seq_len` for the two matmuls of
    attention. `causal` halves the second term, because the causal mask hides half of the scores.
    """
    layers = family_of(model).attention_layers(model)
    attention = 12 * layers * model.n_heads * model.head_dim * seq_len
    # One multiply-add is two FLOPs; the backward pass has two matmuls for each one of the forward.
    weights = family_of(model).multiplied_parameters(model)
    return 6 * weights + attention / (2 if causal else 1)


def stage_tokens(stage: Stage) -> int:
    """Returns the number of positions that all steps of a stage read, including padding."""
    return stage.steps * stage.data.batch_size * stage.data.seq_len


def stage_flops(stage: Stage) -> float:
    """Returns the FLOPs of all steps of a stage, counting causal attention."""
    return stage_tokens(stage) * flops_per_token(stage.model, stage.data.seq_len, causal=True)


def checkpoint_bytes(model: ModelConfig) -> int:
    """Returns the size of one checkpoint in bytes."""
    return STATE_BYTES * parameter_count(model)
