"""Checkpoints under faults: flipped bits, missing checksums, a save that fails."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import toy
from etils import epath
from paths import ROOT

from codellama_jax.checkpoints import loading
from codellama_jax.checkpoints.checkpoint import Checkpoints
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.checkpoints.loading import load_params, read_checksums
from codellama_jax.config import MeshConfig, to_dict
from codellama_jax.errors import UserError
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.training.step import abstract_state, init_state

STAGE = toy.stage()


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def states(mesh):
    """States of steps 1 and 2."""
    with on_mesh(mesh):
        return {step: init_state(STAGE, mesh, seed=step) for step in (1, 2)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, states, mesh):
    """The folder of a stage with a checkpoint of each state."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "config.json").write_text(json.dumps(to_dict(STAGE)))
    checkpoints = Checkpoints(epath.Path(folder) / "checkpoints", STAGE)
    with on_mesh(mesh):
        for step, state in states.items():
            checkpoints.save(step, state, {"0": {"at": step}}, tokens=100 * step)
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "stage")
    return epath.Path(tmp_path / "stage")


def restore(folder: epath.Path, mesh):
    checkpoints = Checkpoints(folder / "checkpoints", STAGE)
    with on_mesh(mesh):
        restored = checkpoints.restore(abstract_state(STAGE, mesh))
    checkpoints.close()
    return restored


def flip_bit(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def largest_files(checkpoint: Path) -> list[Path]:
    """Returns the two largest files of each item of a checkpoint, and the index of its arrays."""
    largest = []
    for item in sorted(checkpoint.iterdir()):
        files = [p for p in item.rglob("*") if p.is_file()]
        largest += sorted(files, key=lambda path: path.stat().st_size)[-2:]
        # The arrays of a new optimizer are all in the index, and the larger files are not read.
        largest += (item / "d").glob("*")
    return largest


def test_a_flipped_bit_never_loads_another_state(saved, folder, states, mesh, capsys):
    rng = np.random.default_rng(0)
    fallen_back = set()
    newest = folder / "checkpoints" / "step_2"
    files = largest_files(Path(newest))
    # Some bytes are never read: an item whose damage went unnoticed is damaged up to 4 times more.
    for number, path in enumerate(files * 5):
        item = path.relative_to(newest).parts[0]
        if number >= len(files) and item in fallen_back:
            continue
        flip_bit(path, rng)
        loaded = jax.device_get(load_params(StageFolder(folder), STAGE.model, mesh))
        used = 1 if "step_2 is damaged" in capsys.readouterr().err else 2
        chex.assert_trees_all_equal(loaded, jax.device_get(states[used].params))
        step, state, cursors = restore(folder, mesh)
        chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(states[step]))
        assert cursors == {"rows": {"0": {"at": step}}, "tokens": 100 * step}
        warnings = capsys.readouterr().err
        assert ("step_2 is damaged, trying the one before it (" in warnings) == (step == 1)
        assert "Traceback" not in warnings
        if step == 1:
            fallen_back.add(item)
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(saved / "checkpoints" / "step_2", newest)
    assert {"params", "optimizer", "cursors", "checksums"} <= fallen_back


def test_other_parameters_of_the_right_form_are_noticed(folder, states, mesh, capsys):
    """TensorStore does not notice them: complete arrays of another checkpoint."""
    checkpoints = folder / "checkpoints"
    shutil.rmtree(checkpoints / "step_2" / "params")
    shutil.copytree(checkpoints / "step_1" / "params", checkpoints / "step_2" / "params")
    params = load_params(StageFolder(folder), STAGE.model, mesh)
    chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(states[1].params))
    assert "does not match its checksum" in capsys.readouterr().err
    assert restore(folder, mesh)[0] == 1


def test_damage_that_only_another_host_sees_falls_back_here_too(
    folder, states, mesh, monkeypatch, capsys
):
    """Otherwise the hosts would restore parts of different checkpoints."""
    errors = ["damaged at host 1"]

    def with_another_host(action):
        value = action()
        if errors:
            raise UserError(errors.pop())
        return value

    monkeypatch.setattr(loading, "on_all_hosts", with_another_host)
    step, state, _ = restore(folder, mesh)
    assert step == 1
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(states[1]))
    warning = "step_2 is damaged, trying the one before it (damaged at host 1)"
    assert warning in capsys.readouterr().err


def test_a_checkpoint_without_checksums_loads(folder, states, mesh):
    shutil.rmtree(folder / "checkpoints" / "step_2" / "checksums")
    assert read_checksums(folder / "checkpoints" / "step_2") is None
    step, state, _ = restore(folder, mesh)
    assert step == 2
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(states[2]))


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"{", b"[]", b"{}"])
def test_damaged_checksums_or_config_are_one_line(folder, mesh, data):
    for step in (1, 2):
        (folder / "checkpoints" / f"step_{step}" / "checksums" / "metadata").write_bytes(data)
    with pytest.raises(UserError, match=r"no checkpoint under .* can be read"):
        restore(folder, mesh)
    if data != b"{}":
        (folder / "config.json").write_bytes(data)
        with pytest.raises(UserError, match=r"config\.json"):
            load_params(StageFolder(folder), STAGE.model, mesh)


# Takes each temporary folder away while it is written, in a thread that never ends.
FAILING = """
import shutil, sys, threading, time
sys.path.insert(0, "tests")
import jax.numpy as jnp
import toy
from etils import epath
from codellama_jax.command_line import run_command
from codellama_jax.checkpoints.checkpoint import Checkpoints
from codellama_jax.training.step import TrainState

def remove(folder):
    while True:
        for written in folder.glob("*tmp*"):
            shutil.rmtree(written, ignore_errors=True)
        time.sleep(0.001)

def main():
    folder = epath.Path(sys.argv[1])
    checkpoints = Checkpoints(folder, toy.stage())
    threading.Thread(target=remove, args=(folder,)).start()
    state = TrainState(jnp.zeros((), jnp.int32), {"a": jnp.ones(9)}, {"b": jnp.ones(9)})
    try:
        for step in range(1000):
            checkpoints.save(step, state, {}, 0)
    finally:
        checkpoints.close()

run_command(main)
"""


def test_a_save_that_fails_ends_the_process(tmp_path):
    argv = [sys.executable, "-c", FAILING, str(tmp_path / "checkpoints")]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PATH": ""}
    process = subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    begun = time.monotonic()
    rest = process.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 15
    assert process.returncode == 2
    assert line.startswith("error: could not save the checkpoint of ")
    assert rest == ""
