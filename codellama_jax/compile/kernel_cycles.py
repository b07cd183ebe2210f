"""Cycles of the Pallas kernels in a program, read from the kernels' schedules.

The HLO has no estimate for a Pallas kernel. `kernels/PACKAGE/static_passes.py` counts the cycles of
one pass over one head or one block of tokens; this module scales them to a kernel's shapes.
"""

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
from typing import Any

from codellama_jax.compile.hlo import Kernel
from codellama_jax.errors import UserError
from codellama_jax.system.files import read_json, user_path, write_file
from kernels.static.chips import CHIPS, ENVIRONMENT
from kernels.static.schedule import flags
from kernels.tpu import ceil_div, round_up

FOLDER = Path(__file__).resolve().parent.parent.parent
# Longest sequence that is compiled, in tokens. The cycles of a longer one follow from its length.
LONGEST = 16_384
MULTIPLE = 1024  # tokens that the compiled lengths of flash attention are multiples of
TOKENS = 4096  # tokens that the cross-entropy is compiled for; its cycles are linear in them
# The program of the other process: prints the cycles of the passes as a JSON list.
COUNT = """
import importlib, json, sys, types
package, chip, args, dump = sys.argv[1:]
module = importlib.import_module(f"kernels.{package}.static_passes")
passes = module.ours(chip, types.SimpleNamespace(**json.loads(args)), dump)
print(json.dumps([p.cycles for p in passes]))
"""
DTYPES = {"bf16": "bfloat16", "f32": "float32", "s8": "int8"}  # NumPy's names of HLO's dtypes
# Kernels of each package, in the order of the passes that its `ours` returns.
PACKAGES = {
    "flash_attention": ("flash_attention_forward", "flash_attention_backward"),
    "cross_entropy": ("cross_entropy_forward", "cross_entropy_head"),
    "decode_attention": ("decode_attention",),
}


def cycles(chip: str, kernel: Kernel, cache: str) -> float | None:
    """Returns the cycles of one run of a kernel, added up over the cores of a device.

    Args:
      chip: a key of `chips.CHIPS`.
      kernel: the kernel.
      cache: folder that keeps the counts.

    Returns:
      None for a kernel that no package counts or that does not compile alone.
    """
    package = _package_of(kernel.name)
    if package == "flash_attention":
        args, passes = _flash_attention(kernel)
    elif package == "cross_entropy":
        args, passes = _cross_entropy(kernel)
    elif package == "decode_attention":
        args, passes = _decode_attention(kernel, CHIPS[chip].cores)
    else:
        return None
    # JSON, because `functools.cache` and the other process both need a plain text.
    counts = count(package, chip, json.dumps(args), cache)
    if not counts:
        return None
    return counts[PACKAGES[package].index(kernel.name)] * passes


def _package_of(name: str) -> str:
    """Returns the package of a kernel, "" if it is not one of the project's."""
    for package, names in PACKAGES.items():
        if name in names:
            return package
    return ""


def _flash_attention(kernel: Kernel) -> tuple[dict[str, Any], float]:
    """Returns the arguments of a pass, and the number of such passes in a run of the kernel."""
    B, N, T, H = kernel.result
    length = min(LONGEST, round_up(T, MULTIPLE))
    # A pass is one head. Compiling a long sequence takes minutes, but its cycles grow with the
    # square of the length.
    return {"seq": length, "head_dim": H}, B * N * (T / length) ** 2


def _cross_entropy(kernel: Kernel) -> tuple[dict[str, Any], float]:
    """Returns the arguments of a pass, and the number of such passes in a run of the kernel."""
    (_, (T, D)), (head_dtype, (V, _)), *_ = kernel.operands
    args = {"seq": TOKENS, "d_model": D, "vocab": V, "head": DTYPES[head_dtype]}
    return args, T / TOKENS


def _decode_attention(kernel: Kernel, cores: int) -> tuple[dict[str, Any], float]:
    """Returns the arguments of a pass, and the number of such passes in a run of the kernel."""
    # The largest operand is the cache of keys or that of values.
    dtype, (M, S, H) = max(kernel.operands, key=_elements)
    # The query heads are padded to full registers, which takes no time.
    args = {"seq": S, "head_dim": H, "cache": DTYPES[dtype], "group": kernel.result[1]}
    # A pass is one head. The cores share the heads evenly; a core without one waits for the others.
    return args, ceil_div(M, cores) * cores


def _elements(operand: tuple[str, tuple[int, ...]]) -> int:
    """Returns the number of elements of an operand."""
    return math.prod(operand[1])


@functools.cache
def count(package: str, chip: str, args: str, cache: str) -> list[int]:
    """Returns the cycles of the passes that a package counts, [] if they do not compile.

    libtpu writes schedules only if it was started with that option, so another process compiles the
    kernels. Its result is kept in `cache` under a hash of libtpu's version and the kernels' code.

    Args:
      package: a key of `PACKAGES`.
      chip: a key of `chips.CHIPS`.
      args: the arguments of `static_passes.ours` as JSON.
      cache: folder that keeps the counts.
    """
    # A change of the kernels, of the counting code or of libtpu invalidates the cached result.
    digest = hashlib.sha256(f"{version('libtpu')} {args}".encode())
    sources: list[Path] = []
    for folder in ("kernels", "kernels/static", f"kernels/{package}"):
        sources += FOLDER.glob(f"{folder}/*.py")
    for source in sorted(sources):
        digest.update(source.read_bytes())
    folder_path = user_path(cache) / "kernel_cycles"
    file = folder_path / f"{package}-{chip}-{digest.hexdigest()[:16]}.json"
    cached = _read_cycles(file)
    if cached is not None:
        return cached
    with tempfile.TemporaryDirectory() as dump:
        # The user's folders too: libtpu may be in one of them.
        paths = [str(FOLDER), os.environ.get("PYTHONPATH", "")]
        search_path = os.pathsep.join(path for path in paths if path)
        settings = ENVIRONMENT | {"LIBTPU_INIT_ARGS": flags(dump), "PYTHONPATH": search_path}
        command = [sys.executable, "-c", COUNT, package, chip, args, dump]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    if done.returncode:
        return []
    write_file(file, done.stdout)
    return json.loads(done.stdout)


def _read_cycles(file: os.PathLike) -> list[int] | None:
    """Returns the cycles in a file of the cache, None if it is missing or damaged."""
    try:
        cycles = read_json(file)
    except UserError:
        return None
    return cycles if isinstance(cycles, list) else None
