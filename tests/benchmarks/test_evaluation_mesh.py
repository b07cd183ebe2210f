"""A model on a mesh and on two hosts draws the samples of one device.

Every device holds only its shard of weights and cache.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import ROOT
from toy import bytes_by_device, stage

from codellama_jax.benchmarks import answers, evaluate
from codellama_jax.benchmarks.settings import Checking, PromptOptions, Settings
from codellama_jax.benchmarks.suites import load
from codellama_jax.checkpoints.checkpoint import Checkpoints
from codellama_jax.checkpoints.loading import load_run
from codellama_jax.config import MeshConfig, to_dict
from codellama_jax.errors import UserError
from codellama_jax.models import decoding
from codellama_jax.sharding.mesh import make_mesh, on_mesh_of
from codellama_jax.training.step import abstract_state, with_fresh_optimizer

DRAWN = Settings(samples=2, temperature=0.5, max_new_tokens=6)
MESHES = [{"fsdp": 8}, {"fsdp": 2, "tensor": 2, "data": 2}, {"fsdp": 1, "tensor": 2, "context": 4}]
# Joins the other host once, then runs the commands one after the other up to the first error.
PROGRAM = """
import shlex, sys
from codellama_jax import cli, command_line
from codellama_jax.sharding import hosts
hosts.start_distributed()
hosts.start_distributed = lambda: None
def run_all():
    for line in sys.argv[1:]:
        cli.parse(shlex.split(line), "test")()
command_line.run_command(run_all)
"""


def placed(model, mesh: dict):
    on = make_mesh(MeshConfig(**mesh))
    shardings = jax.tree.map(
        lambda a: a.sharding, abstract_state(stage(model=model.config), on).params
    )
    return dataclasses.replace(model, params=jax.device_put(model.params, shardings))


@pytest.fixture(scope="module")
def benchmark(files):
    return load("humaneval", data=files["humaneval"])


@pytest.fixture(scope="module")
def expected(model, benchmark):
    return answered(model, benchmark)


def answered(model, benchmark) -> tuple[list[str], list[float]]:
    """Returns greedy completions, and the mean log-probabilities of other texts."""
    [batch] = answers.answers(model, benchmark, Settings(max_new_tokens=24), set())
    texts = ("\n    return x\n", " 1")
    measured = answers.logprobs(model, benchmark, benchmark.tasks, texts, False)
    return [s["completion"] for s in batch], [mean for mean, _ in measured]


# The last one splits 2 key heads over 4 devices.
@pytest.mark.parametrize("mesh", [*MESHES[:2], {"fsdp": 2, "tensor": 4}])
def test_a_mesh_answers_as_one_device_does(model, benchmark, expected, mesh):
    texts, means = answered(placed(model, mesh), benchmark)
    assert texts == expected[0] and all(texts)
    assert means == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_device_holds_its_part_of_weights_and_cache(model, mesh):
    parts, sizes = mesh["fsdp"] * mesh.get("tensor", 1), {True: 0, False: 0}
    on_devices = placed(model, mesh)
    params, weights = on_devices.params, on_devices.decoding_weights
    with on_mesh_of(params, decoding.LOGICAL_AXES):
        start = jax.jit(
            lambda w, tokens, lengths: decoding.prefill(model.config, w, tokens, lengths, 32)[1]
        )
        cache = start(weights, np.zeros((2, 64), np.int32), np.full(2, 64, np.int32))
    for tree in (params, weights):
        for array in jax.tree.leaves(tree):
            sizes[array.sharding.is_fully_replicated] += array.nbytes
        assert max(bytes_by_device(tree)) == sizes[False] / parts + sizes[True]
        assert sizes[True] < 0.02 * sizes[False]
        sizes = {True: 0, False: 0}
    total = sum(array.nbytes for array in jax.tree.leaves(cache))
    assert max(bytes_by_device(cache)) == total / (8 / mesh["fsdp"])


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """The model as a run that has trained 0 steps."""
    root = tmp_path_factory.mktemp("run")
    trained = stage(model=model.config)
    checkpoints = Checkpoints(root / "checkpoints", trained)
    checkpoints.save(0, with_fresh_optimizer(trained, model.params), {}, 0)
    checkpoints.wait()
    checkpoints.close()
    (root / "config.json").write_text(json.dumps(to_dict(trained)))
    model.tokenizer.save(root / "tokenizer.model")
    return root


def test_a_mesh_that_does_not_divide_the_model_is_refused(folder):
    mesh = make_mesh(MeshConfig(tensor=3), jax.devices()[:3])
    problem = r"d_ff 64 does not divide over tensor=3: change --mesh\.tensor"
    with pytest.raises(UserError, match=problem):
        load_run(str(folder), mesh=mesh)


def by_key(path: Path) -> dict:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    samples = {(line["task_id"], line["sample"]): line for line in lines}
    assert len(samples) == len(lines) == 4
    return samples


@pytest.mark.slow
def test_two_hosts_draw_the_samples_of_one_host(model, folder, files, executor, tmp_path):
    """First each host draws its share of the samples, then one model is sharded over both.

    A UserError of one host ends both.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = f"--run {folder} --samples 2 --temperature 0.5 --max-new-tokens 6 --workers 1"
    lines = [
        f"evaluate humaneval --data {files['humaneval']} --out {tmp_path}/{out} {common} {mesh}"
        for out, mesh in (
            ("apart", ""),
            ("together", "--across-hosts --mesh.tensor 2"),
            ("apart", "--seed 1"),
        )
    ]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
    }
    join = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *lines],
            env={**os.environ, **environment, **join, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [2, 2], outputs
    for output in outputs:
        assert "drawn in another way (settings.seed: 0 -> 1): choose another --out" in output
    options, checking = PromptOptions(data=files["humaneval"]), Checking(workers=1)
    evaluate.evaluate("humaneval", lambda: model, options, DRAWN, checking, tmp_path / "alone")

    def measures(out):
        return json.loads((tmp_path / out / "results.json").read_text())["measures"]

    def close(sample):
        fields = ("mean_logprob", "sum_logprob")
        return sample | {field: pytest.approx(sample[field], rel=1e-5) for field in fields}

    alone = by_key(tmp_path / "alone" / "samples.jsonl")
    for out in ("apart", "together"):
        samples = by_key(tmp_path / out / "samples.jsonl")
        assert samples == {name: close(sample) for name, sample in alone.items()}
        assert measures(out) == measures("alone") and "pass@1 ranked" in measures(out)
