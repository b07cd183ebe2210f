"""A tiny experiment in real processes, and the contents of its folder."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from paths import ROOT

from codellama_jax.training.metrics import read_metrics

EXPERIMENT = '''
"""Two tiny stages."""
import dataclasses
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.config import *

def experiment(scale="toy"):
    model = LlamaConfig(336, 32, 2, 4, 2, 8, 64, compute_dtype="float32", remat="none")
    data = DataConfig(64, 8, MixtureConfig(code=1.0), InfillingConfig(0.9), block_chars=150)
    code = Stage(model, data, OptimizerConfig(1e-2, 2), 8, "scratch",
                 eval_rows=8, eval_every=4, checkpoint_every=3, log_every=1)
    longer = dataclasses.replace(code.data, seq_len=128)
    long = dataclasses.replace(code, init="previous", steps=4, data=longer)
    corpus = CorpusConfig(code="SOURCES", validation_fraction=0.3)
    stages = {"code": code, "long": long}
    return Experiment("tiny", scale, {"main": stages}, TokenizerConfig(pieces=320), corpus)
'''


# Runs the command line and sends its own process a signal before the step that AT names.
# Half of the time of so short a run would be the report, which is only written with REPORT, and the
# import of torch, which tensorboardX does not use but imports where it is installed.
PROGRAM = """
import os, sys
sys.modules["torch"] = None
import tensorboardX
del sys.modules["torch"]
from codellama_jax.runs import experiment
from codellama_jax.training.loop import StageRun
from codellama_jax.cli import main
if "REPORT" not in os.environ:
    experiment.write_report = lambda *arguments: None
train, at, number = StageRun.train, os.environ.get("AT", ""), int(os.environ.get("SIGNAL", "0"))
count = 0
def counted(self, step, stop):
    global count
    if f"{self.name.split('/')[1]}:{step}" == at and not count:
        os.kill(os.getpid(), number)
        count = 1
    train(self, step, stop)
StageRun.train = counted
main()
"""


def command(place: Path, out: str, *args: str, **env: str) -> subprocess.Popen:
    argv = [
        sys.executable,
        "-c",
        PROGRAM,
        "run",
        str(place / "tiny.py"),
        "--out",
        os.path.relpath(place / out, ROOT),
        "--cache",
        str(place / "cache"),
        *args,
    ]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
        **env,
    }
    return subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def launch(place: Path, out: str, *args: str, **env: str) -> tuple[int, str, str]:
    process = command(place, out, *args, **env)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def losses(place: Path, out: str, stage: str) -> dict[int, float]:
    return {
        line["step"]: line["loss"]
        for line in read_metrics(place / out / "main" / stage / "metrics.jsonl")
        if "loss" in line
    }


def parameters(place: Path, out: str, stage: str, step: int) -> dict:
    return ocp.StandardCheckpointer().restore(
        place / out / "main" / stage / "checkpoints" / f"step_{step}" / "params"
    )


def same_bits(a: dict, b: dict) -> None:
    import jax

    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
