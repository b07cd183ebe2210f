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
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from codellama_jax.command_line import cli, run_command
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import flops_per_token
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.system.exits import failure_line
from kernels.static.chips import PEAK_FLOPS
from speed.training import Work, ours, peer

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
# Rematerialization policies that are tried, the one that recomputes least first.
RECOMPUTE = {"ours": ("none", "dots", "full"), "peer": ("none", "full")}
# Parts of the error messages of a process that ran out of GPU memory.
NO_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory")


@dataclass(frozen=True)
class Options:
    """Command line."""

    tiny: bool = False  # small shapes on the CPU
    worker: str = ""  # arguments of one side as JSON, for the processes of this script


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
    # JAX's default share is lower, while PyTorch takes what it needs: both get nearly all memory.
    settings = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94"}
    if tiny:
        settings = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # A process per attempt: one that ran out of memory ends, which frees all of it.
    for recompute in RECOMPUTE[side]:
        worker = json.dumps([side, shape, rows, length, recompute])
        command = [sys.executable, __file__, "--worker", worker]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | settings, check=False
        )
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) | {"recompute": recompute}
        # Only a lack of memory leads to the next policy; any other error would be hidden by it.
        if not any(message in done.stderr for message in NO_MEMORY):
            problem = failure_line(done.stderr, done.returncode)
            raise UserError(f"{side} {shape} {length}: {problem}")
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
    # The processes of the sides inherit the environment, and JAX is fastest with preallocated
    # memory.
    del os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]
    return device.device_kind


def main() -> None:
    """Prints a table with a row per shape and length."""
    options = cli(Options, description=__doc__)
    if options.worker:
        side, shape, rows, length, recompute = json.loads(options.worker)
        work = Work(rows, length, recompute=recompute)
        print(json.dumps({"ours": ours, "peer": peer}[side]((SHAPES | TINY)[shape], work)))
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
                # The same formula for both sides: their MFUs differ in time only.
                flops = speeds[side] * flops_per_token(model, length, causal=True)
                # A device without a known peak has no MFU.
                mfu = flops / PEAK_FLOPS.get(device, np.inf)
                shown_mfu = f"{mfu:.1%}" if mfu else "?"
                cells += [f"{speeds[side]:,.0f}", shown_mfu, result["recompute"]]
            table.add_row(shape, f"{length:,}", *cells, f"{speeds['ours'] / speeds['peer']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
