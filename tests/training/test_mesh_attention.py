"""Attention in training: every implementation trains alike, compiles for a pod, or is refused."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from toy import MODEL, batch, stage

import launch
from codellama_jax.config import Experiment, MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.runs import experiment as run
from codellama_jax.sharding.mesh import check_attention, make_mesh, on_mesh
from codellama_jax.training.loop import place, stop_flags
from codellama_jax.training.step import compile_train_step, init_state

SMALL = dataclasses.replace(MODEL, n_heads=2, n_kv_heads=1, head_dim=64)


def trained(attention, steps=20, length=100, rows=2):
    """Trains on packed sequences.

    Returns:
      (loss, gradient norm) of each step, and the parameters after the last one.
    """
    toy = stage(length, rows, dataclasses.replace(SMALL, attention=attention))
    mesh, history = make_mesh(MeshConfig(), jax.devices()[:1]), []
    with on_mesh(mesh):
        state, step, flags = (
            init_state(toy, mesh, 0),
            compile_train_step(toy, mesh),
            stop_flags(0, rows, mesh),
        )
        for i in range(steps):
            placed = place(batch(rows, length, seed=i), [0, 1], rows, mesh)
            state, metrics = step(state, placed | {"stop": flags})
            history.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
    return history, jax.device_get(state.params)


def test_the_kernels_in_the_interpreter_train_like_xla():
    (history, params), (expected, expected_params) = trained("pallas_tpu"), trained("xla")
    np.testing.assert_allclose(history, expected, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, expected_params)


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (
            MeshConfig(context=2),
            {"attention": "reference"},
            "'reference': it cannot split sequences over context; use one of pallas_tpu, xla,",
        ),
        (
            MeshConfig(),
            {"attention": "cudnn", "compute_dtype": "bfloat16"},
            "'cudnn': it does not run on cpu",
        ),
    ],
)
def test_attention_that_cannot_is_refused(mesh, changes, message):
    with pytest.raises(UserError, match=message):
        check_attention(make_mesh(mesh), dataclasses.replace(MODEL, **changes))
    check_attention(make_mesh(mesh), MODEL)
    check_attention(make_mesh(mesh), dataclasses.replace(MODEL, attention="pallas_tpu"))


def test_refusal_comes_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "keep_compiled", lambda cache: None)
    bad = stage(model=dataclasses.replace(MODEL, attention="reference"))
    experiment = Experiment(
        "bad", "toy", {"main": {"code": bad}}, mesh=MeshConfig(fsdp=4, context=2)
    )
    with pytest.raises(UserError, match="it cannot split sequences over context"):
        run.run_experiment(
            experiment,
            "",
            None,
            launch.Run("bad", out=str(tmp_path / "run"), cache=str(tmp_path / "cache")),
        )
    assert not list(tmp_path.iterdir())


COMPILE = """
import dataclasses, sys, jax
from jax.experimental import topologies
from toy import MODEL, stage
from codellama_jax.config import MeshConfig
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.step import BATCH_DTYPES, abstract_state, compile_train_step

model = dataclasses.replace(
    MODEL, d_model=256, n_kv_heads=4, head_dim=64, compute_dtype="bfloat16", remat="full"
)
toy = stage(512, 16, model)
pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
mesh = make_mesh(MeshConfig(*map(int, sys.argv[1:])), list(pod.devices))
with on_mesh(mesh):
    rows = {k: jax.ShapeDtypeStruct((16, 512), dtype) for k, dtype in BATCH_DTYPES.items()}
    rows["stop"] = jax.ShapeDtypeStruct((16,), "int32")
    lowered = compile_train_step(toy, mesh).lower(abstract_state(toy, mesh), rows)
    text = lowered.compile().as_text()
kernels = text.count("custom_call_target=\\"tpu_custom_call\\"")
print(kernels, text.count("collective-permute-start("))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)
@pytest.mark.parametrize("mesh", [(1, 4, 1, 4), (1, 2, 4, 2)])
def test_a_train_step_with_the_kernels_compiles_for_a_pod(mesh):
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", COMPILE, *map(str, mesh)]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=True
    )
    kernels, hops = map(int, done.stdout.split())
    assert kernels >= 3  # forward, forward again for the backward pass, backward
    assert mesh[2] == 1 or hops >= 6  # keys and values go around in each of them
