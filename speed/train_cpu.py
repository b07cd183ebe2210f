"""Tokens per second of training on a CPU, beside transformers with and without torch.compile.

    pip install -e '.[oracle]'
    PYTHONPATH=. python speed/train_cpu.py     # 1M, 7M and 135M parameters
    PYTHONPATH=. python speed/train_cpu.py --shapes 7m --rounds 5

The three sides alternate, each in a separate process, and a figure is the median over the rounds. A
ratio above 1 means that ours is faster. bf16 is measured where the processor multiplies it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from codellama_jax.command_line import cli, run_command
from codellama_jax.errors import UserError
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.system.exits import failure_line
from speed.training import Work, ours, peer

# Model, sequences per step, tokens per sequence, and steps in a measurement.
SHAPES = {
    "1m": (LlamaConfig(1024, 128, 4, 4, 4, 32, 384), Work(8, 512)),
    "7m": (LlamaConfig(4096, 256, 6, 8, 8, 32, 704), Work(8, 512)),
    # That of SmolLM2-135M.
    "135m": (LlamaConfig(49_152, 576, 30, 9, 3, 64, 1536), Work(1, 512, steps=2)),
}
Dtype = Literal["float32", "bfloat16"]
SIDES = ("ours", "eager", "compiled")
# Flags of /proc/cpuinfo: without one of them bf16 is emulated and slower than fp32.
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True)
class Options:
    """Command line."""

    shapes: str = "1m,7m,135m"  # names of shapes, with commas between
    rounds: int = 3  # measurements of each side
    worker: str = ""  # arguments of one side as JSON, for the processes of this script


def measure(side: str, shape: str, dtype: str) -> float:
    """Returns the tokens per second of a side, which runs in a separate process.

    Raises UserError with the last line of its error where the process fails.
    """
    worker = json.dumps([side, shape, dtype])
    command = [sys.executable, __file__, "--worker", worker]
    # No side may move to a GPU that the machine happens to have.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        problem = failure_line(done.stderr, done.returncode)
        raise UserError(f"{side} {shape} {dtype}: {problem}")
    work = SHAPES[shape][1]
    # A worker prints its result as the last line; libraries may print before it.
    return work.rows * work.length / json.loads(done.stdout.splitlines()[-1])["seconds"]


def run_side(side: str, shape: str, dtype: Dtype) -> dict:
    """Returns seconds per step and the last loss of a side, in this process."""
    model, work = SHAPES[shape]
    model = dataclasses.replace(model, compute_dtype=dtype)
    if side == "ours":
        return ours(model, work)
    return peer(model, dataclasses.replace(work, is_compiled=side == "compiled"))


def processor() -> tuple[str, set[str]]:
    """Returns the name of the processor and the flags that Linux reports of it."""
    name, flags = platform.processor() or platform.machine(), set()
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            field, _, value = line.partition(":")
            if field.strip() == "model name":
                name = value.strip()
            elif field.strip() == "flags":
                flags = set(value.split())
    return name, flags


def main() -> None:
    """Prints a table with a row per shape and dtype."""
    options = cli(Options, description=__doc__)
    if options.worker:
        print(json.dumps(run_side(*json.loads(options.worker))))
        return
    shapes = options.shapes.split(",")
    for shape in shapes:
        if shape not in SHAPES:
            raise UserError(f"--shapes: {shape!r} is none of {', '.join(SHAPES)}")
    name, flags = processor()
    dtypes = ["float32"]
    if flags & BF16_FLAGS:
        dtypes.append("bfloat16")
    columns = ["shape", "dtype", *[f"{side}, tokens/s" for side in SIDES]]
    columns += ["ours / eager", "ours / compiled"]
    title = f"{name}, {os.cpu_count()} cores; median of {options.rounds} alternating rounds"
    table = Table(*columns, title=title)
    for shape in shapes:
        for dtype in dtypes:
            speeds: dict[str, list[float]] = {side: [] for side in SIDES}
            for _ in range(options.rounds):
                for side in SIDES:
                    speeds[side].append(measure(side, shape, dtype))
                    # The table comes minutes later.
                    report = f"{shape} {dtype} {side}: {speeds[side][-1]:,.0f} tokens/s"
                    print(report, file=sys.stderr, flush=True)
            # The median of alternating rounds leaves out one that other load disturbed.
            medians = [statistics.median(speeds[side]) for side in SIDES]
            ratios = [medians[0] / median for median in medians[1:]]
            cells = [f"{value:,.0f}" for value in medians] + [f"{ratio:.2f}" for ratio in ratios]
            table.add_row(shape, dtype, *cells)
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
