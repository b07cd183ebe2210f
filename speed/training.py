"""Train steps that the speed scripts compare: the one of `launch.py run`, and transformers'.

Both sides take a shape of the Llama family and train on random tokens: fp32 weights and AdamW,
clipped gradients, the same tokens per step, one document per sequence. A side runs in a
separate process, so that the thread pool and the memory of the other do not disturb it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from codellama_jax.config import DataConfig, MixtureConfig, ModelConfig, OptimizerConfig, Stage

Recompute = Literal["none", "dots", "full"]
WARMUP = 3  # steps before the measurement


@dataclasses.dataclass(frozen=True)
class Work:
    """What a side trains.

    Attributes:
      rows: sequences per step.
      length: tokens per sequence.
      steps: in the measurement.
      recompute: the rematerialization policy; the peer has "none" and "full" only.
      is_compiled: whether the peer runs under torch.compile.
    """

    rows: int
    length: int
    steps: int = 10
    recompute: Recompute = "none"
    is_compiled: bool = True


def seconds_per_step(step: Callable[[], Any], steps: int) -> tuple[float, float]:
    """Returns seconds per step after a warm-up, and the last loss.

    `step` returns the loss on the device. It is read only after the last step, so that the host can
    dispatch ahead as it does in training.
    """
    # The first steps compile and allocate.
    for _ in range(WARMUP):
        loss = step()
    # Waits for the device: without it the warm-up would run into the measurement.
    float(loss)
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
    loss = float(loss)
    return (time.perf_counter() - start) / steps, loss


def ours(model: ModelConfig, work: Work) -> dict:
    """Returns seconds per step and the last loss of our train step."""
    import jax

    from codellama_jax.config import MeshConfig
    from codellama_jax.sharding.mesh import make_mesh, on_mesh
    from codellama_jax.system.allocator import keep_freed_memory
    from codellama_jax.training.loop import owned_rows, place, stop_flags
    from codellama_jax.training.step import compile_train_step, init_state

    keep_freed_memory()
    shape = rows, length = work.rows, work.length
    model = dataclasses.replace(model, remat=work.recompute)
    data = DataConfig(length, rows, MixtureConfig(code=1.0))
    stage = Stage(model, data, OptimizerConfig(1e-4), steps=1000, init="scratch")
    # Random tokens: the time of a step does not depend on them.
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (rows, length + 1)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        # One document fills each sequence, as on the peer's side, which knows no packing.
        "segment_ids": np.ones(shape, np.int32),
        "weights": np.ones(shape, np.float32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), shape),
    }
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with on_mesh(mesh):
        state, train_step = init_state(stage, mesh, 0), compile_train_step(stage, mesh)
        owned = owned_rows(mesh, rows)
        placed = place(batch, owned, rows, mesh) | {"stop": stop_flags(0, rows, mesh)}

        def step() -> jax.Array:
            nonlocal state
            # The old state is donated, so that it must be replaced in every step.
            state, metrics = train_step(state, placed)
            return metrics["loss"]

        seconds, loss = seconds_per_step(step, work.steps)
    return {"seconds": seconds, "loss": loss}


def peer(model: ModelConfig, work: Work) -> dict:
    """Returns seconds per step and the last loss of transformers' Llama with SDPA."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Lets PyTorch use TF32 on GPUs, as JAX's default precision does for fp32 there.
    torch.set_float32_matmul_precision("high")
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        max_position_embeddings=work.length,
        attn_implementation="sdpa",
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        intermediate_size=model.d_ff,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=model.head_dim,
    )
    llama = LlamaForCausalLM(config).to(device).train()
    if work.recompute == "full":
        llama.gradient_checkpointing_enable()
    # The same moments and decay as ours; `fused` runs the update in one kernel.
    optimizer = torch.optim.AdamW(
        llama.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    forward = torch.compile(llama) if work.is_compiled else llama
    tokens = torch.randint(model.vocab_size, (work.rows, work.length), device=device)
    is_half = model.compute_dtype == "bfloat16"

    def step() -> torch.Tensor:
        # fp32 weights and bf16 compute, as on our side.
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        # Frees the gradients instead of filling them with zeros.
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    seconds, loss = seconds_per_step(step, work.steps)
    return {"seconds": seconds, "loss": loss}
