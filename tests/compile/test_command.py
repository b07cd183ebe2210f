"""The verb `compile`. Tests that need the TPU compiler run where libtpu is installed."""

import dataclasses
import importlib.util
import subprocess
import sys

import pytest
from paths import ROOT

from codellama_jax.compile import command
from codellama_jax.compile.collectives import Collective
from codellama_jax.compile.command import Job, candidates, choose_stage
from codellama_jax.compile.report import Report
from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import flops_per_token
from codellama_jax.runs.commands import PlanOptions, load_experiment

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the extra `tpu`)"
)


def launch(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "launch.py", "compile", *args], cwd=ROOT, capture_output=True, text=True
    )


@needs_libtpu
def test_a_toy_step_compiles_for_a_pod(tmp_path):
    done = launch(
        "quickstart",
        "--target",
        "v5e:2x2",
        "--mesh.tensor",
        "2",
        "--code.model.n-layers",
        "2",
        "--cache",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    for part in (
        "fsdp 2 x tensor 2, 4 devices",
        "fits 15.75 GiB",
        "collectives: ",
        "all-reduce over fsdp, ",
        "B per device; bandwidth model: ",
        "compiler estimate: MFU",
        "s per step, collectives overlapped as scheduled; ",
        "s per step, collectives fully exposed; ",
        "compiled in ",
    ):
        assert part in done.stdout


@needs_libtpu
def test_one_chip_of_each_generation_is_a_target():
    program = (
        "from codellama_jax.compile import target\n"
        "names = ['v4:1x1x1', 'v5e:1x1', 'v5p:1x1x1', 'v6e:1x1', 'tpu7x:1x1x1']\n"
        "target.prepare_environment(names[0])\n"
        "print([len(target.devices(name, 1)) for name in names])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # A device is a chip, but one of the two cores of a TPU7x chip.
    assert done.stdout == "[1, 1, 1, 1, 2]\n", done.stderr


@needs_libtpu
def test_decoding_reads_its_own_heads_with_the_kernel(tmp_path):
    shape = (
        "--long-context.model.head-dim",
        "128",
        "--long-context.model.n-layers",
        "2",
        "--context",
        "5000",
    )
    done = launch(
        "quickstart",
        "--stage",
        "decode",
        "--target",
        "v5e:2x2",
        "--mesh.tensor",
        "2",
        *shape,
        "--cache",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "compiler estimate: reading weights and cache once takes" in done.stdout
    assert "(0 s in Pallas kernels)" not in done.stdout and "not in the estimate" not in done.stdout


@needs_libtpu
def test_a_row_too_long_for_a_kernel_is_one_line(tmp_path):
    done = launch(
        "quickstart",
        "--target",
        "v4:2x2x1",
        "--code.data.seq-len",
        "65536",
        "--code.data.batch-size",
        "4",
        "--cache",
        str(tmp_path),
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "shard the sequence over more devices of the context axis" in done.stderr


@needs_libtpu
def test_a_step_too_large_names_its_buffers(tmp_path):
    too_large = (
        "--code.data.batch-size",
        "4096",
        "--code.data.seq-len",
        "4096",
        "--code.model.n-layers",
        "2",
    )
    done = launch("quickstart", "--target", "v5e:2x2", *too_large, "--cache", str(tmp_path))
    assert done.returncode == 3, done.stderr
    for part in (
        "DOES NOT FIT 15.75 GiB of HBM",
        "largest buffers",
        "codellama_jax/models/",
    ):
        assert part in done.stdout


@needs_libtpu
@pytest.mark.parametrize(
    "args, message",
    [
        (("--target", "v5q:2x2"), "did you mean v5"),
        (("--target", "v5p"), "such as v5p:4x4x4"),
        (("--target", "v5p:3x5x7"), "no topology v5p:3x5x7"),
        (("--target", "v5e:2x2", "--mesh.tensor", "3"), "there are 4: change --mesh"),
        (
            ("--target", "v5e:2x2", "--stage", "coed"),
            "there are code, long_context, prefill, decode",
        ),
    ],
)
def test_a_pod_that_cannot_be_is_one_line(args, message):
    done = launch("quickstart", *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_one_line_says_what_to_install():
    done = launch("quickstart")
    install = "pip install -e '.[tpu]' in the project's folder"
    assert done.stderr == f"error: the TPU compiler is not installed: {install}\n"
    assert done.returncode == 2


def test_the_search_tries_only_meshes_that_divide():
    experiment, _ = load_experiment(PlanOptions("code_llama", "34b"))
    job = Job(choose_stage(experiment, "", "code"), "train", MeshConfig(), 1, 1)
    tried = candidates(job, 256)
    assert 4 <= len(tried) <= 16
    for trial in tried:
        rows = 256 // (trial.mesh.tensor * trial.mesh.context)
        assert job.stage.data.batch_size % (rows * trial.stage.micro_batches) == 0
    with pytest.raises(UserError, match="there are code, long_context, prefill, decode"):
        choose_stage(experiment, "", "coed")


def test_the_search_prefers_the_shortest_step_with_its_collectives(monkeypatch, capsys):
    experiment, _ = load_experiment(PlanOptions("code_llama", "34b"))
    job = Job(choose_stage(experiment, "", "code"), "train", MeshConfig(), 1, 1)

    # Less computation comes with more communication than it saves.
    def compile_job(candidate, chip, mesh, cache):
        compute, exposed = (2.0, 3.0) if candidate.mesh.tensor == 1 else (3.0, 1.0)
        gather = Collective("all-gather", "fsdp", 1, 1, exposed, exposed)
        return Report(1, 1, 1, 1, [gather], compute, 0.0, (), (1e14, 1e14)), 4096

    monkeypatch.setattr(command, "compile_job", compile_job)
    monkeypatch.setattr(command, "make_mesh", lambda mesh, devices: mesh)
    best, report, _ = command.search(job, "v5e", [None] * 256, "")
    assert best.mesh.tensor > 1 and report.overlapped == 4.0
    assert "fits, MFU 0.127 (with the bandwidth model's collectives)" in capsys.readouterr().out


def test_prefill_computes_the_logits_of_one_token_per_prompt():
    """The same model with more vocabulary entries needs only their columns of the last token."""
    experiment, _ = load_experiment(PlanOptions("code_llama", "7b"))
    stage = choose_stage(experiment, "", "code")
    larger = dataclasses.replace(stage.model, vocab_size=stage.model.vocab_size + 1000)
    job = Job(stage, "prefill", MeshConfig(), batch=2, context=300)
    added = command.inference_flops(larger, job, True) - command.inference_flops(
        stage.model, job, True
    )
    assert added == 2 * 2 * 1000 * stage.model.d_model
    # A decoding step computes the logits of the one token that it reads.
    decode = dataclasses.replace(job, kind="decode")
    step = command.inference_flops(stage.model, decode, causal=False)
    assert step == 2 * flops_per_token(stage.model, 300, causal=False) / 3
