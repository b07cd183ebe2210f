"""Tokens per second and MFU of training on one GPU, beside transformers, in one run.

    pip install -e '.[gpu,oracle]'
    PYTHONPATH=. python speed/gpu.py         # 1B and 3B parameters, 4,096 and 16,384 tokens
    PYTHONPATH=. python speed/gpu.py --tiny  # checks this script on a CPU; its numbers mean nothing

The peer is transformers' Llama with torch.compile and SDPA. Each side trains in a separate process:
fp32 weights and AdamW, bf16 compute, clipped gradients, the same tokens per step, one document per
sequence. Each recomputes as little in the backward pass as fits the memory. Our step is the one
that `launch.py run` uses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from codellama_jax.command_line import cli, run_command
from codellama_jax.config import DataConfig, MixtureConfig, ModelConfig, OptimizerConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import flops_per_token
from codellama_jax.models.llama.config import LlamaConfig
from kernels.static.chips import PEAK_FLOPS

SHAPES = {
    "1b": LlamaConfig(
        32_016, d_model=2048, n_layers=20, n_heads=16, n_kv_heads=16, head_dim=128, d_ff=5632
    ),
    "3b": LlamaConfig(
        32_016, d_model=3072, n_layers=28, n_heads=24, n_kv_heads=8, head_dim=128, d_ff=8192
    ),
}
TINY = {
    "tiny": LlamaConfig(512, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128)
}
LENGTHS, STEP_TOKENS = (4096, 16_384), 16_384  # tokens per sequence, and per step
TINY_LENGTHS, TINY_STEP_TOKENS = (64, 128), 256
WARMUP, STEPS = 3, 10  # steps before the measurement, and in it
# Rematerialization policies that are tried, the one that recomputes least first.
RECOMPUTE = {"ours": ("none", "dots", "full"), "peer": ("none", "full")}
# Parts of the error messages of a process that ran out of GPU memory.
NO_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory")


@dataclass(frozen=True)
class Options:
    """Command line."""

    tiny: bool = False  # small shapes on the CPU
    worker: str = ""  # arguments of one side as JSON, for the processes of this script


def seconds_per_step(step: Callable[[], Any]) -> tuple[float, float]:
    """Returns seconds per step after a warm-up, and the last loss.

    `step` returns the loss on the device. It is read only after the last step, so that the host can
    dispatch ahead as it does in training.
    """
    for _ in range(WARMUP):
        loss = step()
    float(loss)
    start = time.perf_counter()
    for _ in range(STEPS):
        loss = step()
    loss = float(loss)
    return (time.perf_counter() - start) / STEPS, loss


def ours(model: ModelConfig, rows: int, length: int, recompute: str) -> dict:
    """Returns seconds per step and the last loss of our train step.

    Args:
      model: the shape.
      rows: sequences per step.
      length: tokens per sequence.
      recompute: a rematerialization policy.
    """
    import dataclasses

    import jax

    from codellama_jax.config import MeshConfig
    from codellama_jax.sharding.mesh import make_mesh, on_mesh
    from codellama_jax.training.loop import owned_rows, place, stop_flags
    from codellama_jax.training.step import compile_train_step, init_state

    model = dataclasses.replace(model, remat=recompute)
    stage = Stage(
        model,
        DataConfig(length, rows, MixtureConfig(code=1.0)),
        OptimizerConfig(1e-4),
        steps=1000,
        init="scratch",
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (rows, length + 1)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((rows, length), np.int32),
        "weights": np.ones((rows, length), np.float32),
    }
    batch["positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with on_mesh(mesh):
        state, train_step = init_state(stage, mesh, 0), compile_train_step(stage, mesh)
        owned = owned_rows(mesh, rows)
        placed = place(batch, owned, rows, mesh) | {"stop": stop_flags(0, rows, mesh)}

        def step():
            nonlocal state
            state, metrics = train_step(state, placed)
            return metrics["loss"]

        seconds, loss = seconds_per_step(step)
    return {"seconds": seconds, "loss": loss}


def peer(model: ModelConfig, rows: int, length: int, recompute: str) -> dict:
    """Returns seconds per step and the last loss of transformers' Llama; arguments as in `ours`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    sizes = {
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "intermediate_size": model.d_ff,
        "head_dim": model.head_dim,
    }
    heads = {"num_attention_heads": model.n_heads, "num_key_value_heads": model.n_kv_heads}
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        max_position_embeddings=length,
        attn_implementation="sdpa",
        **sizes,
        **heads,
    )
    llama = LlamaForCausalLM(config).to(device).train()
    if recompute == "full":
        llama.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(
        llama.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    forward = torch.compile(llama)
    tokens = torch.randint(model.vocab_size, (rows, length), device=device)

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    seconds, loss = seconds_per_step(step)
    return {"seconds": seconds, "loss": loss}


def measure(side: str, shape: str, rows: int, length: int, tiny: bool) -> dict:
    """Runs one side in a separate process, with the least recomputation that fits the memory.

    Args:
      side: a key of `RECOMPUTE`.
      shape: a key of `SHAPES` or `TINY`.
      rows: sequences per step.
      length: tokens per sequence.
      tiny: whether to run on the CPU.

    Raises:
      UserError: if no policy fits, or if the process fails for another reason.
    """
    settings = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94"}
    if tiny:
        settings = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    for recompute in RECOMPUTE[side]:
        worker = json.dumps([side, shape, rows, length, recompute])
        command = [sys.executable, __file__, "--worker", worker]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | settings, check=False
        )
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) | {"recompute": recompute}
        if not any(message in done.stderr for message in NO_MEMORY):
            raise UserError(f"{side} {shape} {length}: {done.stderr.strip().splitlines()[-1]}")
    problem = f"{side} {shape} with {rows} sequences of {length} tokens does not fit this GPU"
    raise UserError(f"{problem}, even with full rematerialization: use a GPU with more memory")


def check_packages(tiny: bool) -> str:
    """Returns JAX's `device_kind` of the GPU, or "CPU" for `tiny`.

    Raises:
      UserError: if there is no GPU or a package is missing.
    """
    import importlib.util

    import jax

    packages = ("torch", "transformers")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the peer needs {' and '.join(missing)}: pip install -e '.[gpu,oracle]'")
    if tiny:
        return "CPU"
    # This process only reads the device's name: the memory is for the processes of the two sides.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    device = jax.devices()[0]
    if device.platform != "gpu":
        raise UserError(
            "no GPU that JAX can use: run this on one, after pip install -e '.[gpu,oracle]';"
            " --tiny checks this script on a CPU"
        )
    del os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]
    return device.device_kind


def main() -> None:
    """Prints a table with a row per shape and length."""
    options = cli(Options, description=__doc__)
    if options.worker:
        side, shape, *rest = json.loads(options.worker)
        print(json.dumps({"ours": ours, "peer": peer}[side]((SHAPES | TINY)[shape], *rest)))
        return
    device = check_packages(options.tiny)
    shapes, lengths, tokens = SHAPES, LENGTHS, STEP_TOKENS
    if options.tiny:
        shapes, lengths, tokens = TINY, TINY_LENGTHS, TINY_STEP_TOKENS
    columns = (
        "shape",
        "tokens per sequence",
        "ours, tokens/s",
        "MFU",
        "recomputed",
        "peer, tokens/s",
        "MFU",
        "recomputed",
        "ours / peer",
    )
    table = Table(*columns, title=f"{device}; MFU with causal attention, recomputation not counted")
    for shape, model in shapes.items():
        for length in lengths:
            speeds, cells = {}, []
            for side in ("ours", "peer"):
                result = measure(side, shape, tokens // length, length, options.tiny)
                speeds[side] = tokens / result["seconds"]
                flops = speeds[side] * flops_per_token(model, length, causal=True)
                # A device without a known peak has no MFU.
                mfu = flops / PEAK_FLOPS.get(device, np.inf)
                shown_mfu = f"{mfu:.1%}" if mfu else "?"
                cells += [f"{speeds[side]:,.0f}", shown_mfu, result["recompute"]]
            table.add_row(shape, f"{length:,}", *cells, f"{speeds['ours'] / speeds['peer']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
