"""The cost of a stage, computed from its config alone: parameters, FLOPs and bytes.

XLA's own FLOP count is not used: it counts the body of a `lax.scan` once, however often it runs.
"""

from __future__ import annotations

from codellama_jax.config import ModelConfig, Stage
from codellama_jax.models.family import family_of

# Bytes per parameter in a checkpoint: the fp32 weight and AdamW's two fp32 moments.
STATE_BYTES = 12
# Bytes per trained parameter in a step: its fp32 gradient as well.
TRAINED_BYTES = STATE_BYTES + 4


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
    return stage_tokens(stage) * training_flops(stage, causal=True)


def trained_parameters(stage: Stage) -> int:
    """Returns the number of parameters that a stage trains: all, or those of its adapters.

    Raises FieldError for adapters that the model cannot have.
    """
    if stage.lora.rank is None:
        return parameter_count(stage.model)
    # The shapes of adapters are those of the module, whose tracing needs JAX.
    from codellama_jax.models.lora import adapter_count

    return adapter_count(stage.model, stage.lora)


def training_flops(stage: Stage, causal: bool) -> float:
    """Returns `flops_per_token` of a stage's train step.

    A frozen weight has no gradient, which takes two of its six FLOPs; adapters add their own six.
    """
    flops = flops_per_token(stage.model, stage.data.seq_len, causal)
    if stage.lora.rank is None:
        return flops
    frozen = family_of(stage.model).multiplied_parameters(stage.model)
    # The gradient of the activations passes through frozen weights and is still computed.
    return flops - 2 * frozen + 6 * trained_parameters(stage)


def checkpoint_bytes(stage: Stage) -> int:
    """Returns the size of one checkpoint in bytes."""
    return STATE_BYTES * trained_parameters(stage)


def frozen_bytes(stage: Stage) -> int:
    """Returns the bytes of the weights that a stage adds adapters to, 0 without adapters."""
    if stage.lora.rank is None:
        return 0
    from codellama_jax.models.lora import frozen_size

    return frozen_size(stage.model, stage.lora)
