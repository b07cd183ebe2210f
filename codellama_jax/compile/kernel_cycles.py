"""Cycles of our Pallas kernels, which the HLO does not carry: read from their schedules by `kernels.static`'s counters."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from codellama_jax.compile.target import ENVIRONMENT

FOLDER = Path(__file__).resolve().parent.parent.parent
LONGEST = 16_384  # longer passes cost as the square of their length; beyond it the backward kernel does not fit every chip
COUNT = """
import json, sys, types
from kernels.flash_attention import static_passes
args = types.SimpleNamespace(seq=int(sys.argv[2]), head_dim=int(sys.argv[3]))
print(json.dumps([p.cycles for p in static_passes.ours(sys.argv[1], args, sys.argv[4])]))
"""


@functools.cache
def cycles_a_head(chip: str, length: int, head_dim: int, cache: str) -> dict[str, float]:
    """Returns cycles of one causal pass over one head on one core, by the kernel's name.

    The schedule is written only to a libtpu that was started for it, so another process reads it; what it says is kept in `cache`.
    """
    seq = min(LONGEST, -(-length // 1024) * 1024)
    digest = hashlib.sha256(version("libtpu").encode())
    for source in sorted(FOLDER.glob("kernels/**/*.py")):
        digest.update(source.read_bytes())
    kept = Path(cache).expanduser() / "kernel_cycles" / f"{chip}-{seq}-{head_dim}-{digest.hexdigest()[:16]}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as dump:
            flags = {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true", "PYTHONPATH": str(FOLDER)}
            command = [sys.executable, "-c", COUNT, chip, str(seq), str(head_dim), dump]
            found = subprocess.run(command, env=os.environ | ENVIRONMENT | flags, capture_output=True, text=True)
        if found.returncode:
            return {}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(found.stdout)
    forward, backward = json.loads(kept.read_text())
    scale = (length / seq) ** 2
    return {"flash_attention_forward": forward * scale, "flash_attention_backward": backward * scale}
