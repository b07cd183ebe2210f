"""Cycles of our Pallas kernels, which the HLO does not carry: read from their schedules by `kernels.static.command`'s counters."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from codellama_jax.compile.hlo import Kernel
from codellama_jax.errors import UserError
from codellama_jax.system.files import read_json, user_path, write_file
from kernels.static.chips import CHIPS, ENVIRONMENT
from kernels.static.schedule import flags

FOLDER = Path(__file__).resolve().parent.parent.parent
LONGEST = 16_384  # longer passes cost as the square of their length; beyond it the backward kernel does not fit every chip
TOKENS = 4096  # of the head's loss, whose cost is linear in them
COUNT = """
import importlib, json, sys, types
package, chip, args, dump = sys.argv[1:]
passes = importlib.import_module(f"kernels.{package}.static_passes")
print(json.dumps([p.cycles for p in passes.ours(chip, types.SimpleNamespace(**json.loads(args)), dump)]))
"""
DTYPES = {"bf16": "bfloat16", "f32": "float32"}
PACKAGES = {  # their kernels, in the order of what `ours` returns
    "flash_attention": ("flash_attention_forward", "flash_attention_backward"),
    "cross_entropy": ("cross_entropy_forward", "cross_entropy_head"),
    "decode_attention": ("decode_attention",),
}


def cycles(chip: str, kernel: Kernel, cache: str) -> float | None:
    """Returns the cycles of one run of a kernel, its cores added up; None for a kernel that cannot be counted."""
    package = next((p for p, names in PACKAGES.items() if kernel.name in names), None)
    if package == "flash_attention":  # causal passes over heads
        B, N, T, H = kernel.result
        args, runs = {"seq": min(LONGEST, -(-T // 1024) * 1024), "head_dim": H}, B * N
        runs *= (T / args["seq"]) ** 2
    elif package == "cross_entropy":
        (_, (T, D)), (head, (V, _)), *_ = kernel.operands
        args, runs = {"seq": TOKENS, "d_model": D, "vocab": V, "head": DTYPES[head]}, T / TOKENS
    elif package == "decode_attention":  # over a full cache; a core without a head waits
        M, S, H = max((shape for _, shape in kernel.operands), key=math.prod)
        args, runs = (
            {"seq": min(LONGEST, S), "head_dim": H},
            -(-M // CHIPS[chip].cores) * CHIPS[chip].cores,
        )
        runs *= S / args["seq"]
    else:
        return None
    counted = count(package, chip, json.dumps(args), cache)
    return counted[PACKAGES[package].index(kernel.name)] * runs if counted else None


@functools.cache
def count(package: str, chip: str, args: str, cache: str) -> list[int]:
    """Returns the cycles of the passes that `kernels.PACKAGE.static_passes.ours` counts; nothing where they do not compile.

    The schedule is written only to a libtpu that was started for it, so another process reads it; what it says is kept in `cache`.
    """
    digest = hashlib.sha256(f"{version('libtpu')} {args}".encode())
    for source in sorted(
        [
            *FOLDER.glob("kernels/*.py"),
            *FOLDER.glob("kernels/static/*.py"),
            *FOLDER.glob(f"kernels/{package}/*.py"),
        ]
    ):
        digest.update(source.read_bytes())
    folder = user_path(cache) / "kernel_cycles"
    kept = folder / f"{package}-{chip}-{digest.hexdigest()[:16]}.json"
    cycles = _read_cycles(kept)
    if cycles is None:
        with tempfile.TemporaryDirectory() as dump:
            settings = ENVIRONMENT | {"LIBTPU_INIT_ARGS": flags(dump), "PYTHONPATH": str(FOLDER)}
            command = [sys.executable, "-c", COUNT, package, chip, args, dump]
            found = subprocess.run(
                command, env=os.environ | settings, capture_output=True, text=True
            )
        if found.returncode:
            return []
        write_file(kept, found.stdout)
        cycles = json.loads(found.stdout)
    return cycles


def _read_cycles(kept: os.PathLike) -> list[int] | None:
    """Returns the cycles in a file of the cache, None if it is missing or damaged."""
    try:
        cycles = read_json(kept)
    except UserError:
        return None
    return cycles if isinstance(cycles, list) else None
