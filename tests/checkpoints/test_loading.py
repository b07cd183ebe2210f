"""Loading parameters for use: the same numbers as the trainer's, without the trainer."""

import dataclasses
import json
import os
import subprocess
import sys

import chex
import jax
import pytest
import toy
from etils import epath
from paths import ROOT

from codellama_jax.checkpoints.checkpoint import Checkpoints
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.checkpoints.loading import load_params
from codellama_jax.config import MeshConfig, to_dict
from codellama_jax.errors import UserError
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.training.step import init_state

MESHES = [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a stage with a checkpoint of step 3, and its parameters."""
    root = tmp_path_factory.mktemp("saved")
    lines = [f"def name_{i}(x):\n    return x + {i}\n" for i in range(300)]
    tokenizer = tokenizers.train(lines, 320, root / "cache")
    model = dataclasses.replace(toy.MODEL, vocab_size=tokenizer.vocab_size)
    stage = toy.stage(model=model, seq_len=64)
    folder, mesh = StageFolder(epath.Path(root) / "stage"), make_mesh(MeshConfig())
    checkpoints = Checkpoints(folder.checkpoints, stage)
    with on_mesh(mesh):
        state = init_state(stage, mesh, seed=1)
        checkpoints.save(3, state, {}, tokens=0)
    checkpoints.wait()
    checkpoints.close()
    folder.config.write_text(json.dumps(to_dict(stage)))
    tokenizer.save(folder.path / tokenizers.FILE)
    return folder, stage.model, jax.device_get(state.params)


@pytest.mark.parametrize("config", MESHES, ids=["fsdp", "data x fsdp x tensor"])
def test_parameters_are_the_saved_ones_on_any_mesh(saved, config):
    folder, model, params = saved
    mesh = make_mesh(config)
    loaded = load_params(folder, model, mesh)
    chex.assert_trees_all_equal(jax.device_get(loaded), params)
    assert not loaded["layers"]["ffn"]["down"].sharding.is_fully_replicated
    assert loaded["embedding"].sharding.mesh == mesh


def test_arrays_of_another_shape_are_one_line(saved, capsys):
    """A config that does not describe the arrays, as after an edit by hand."""
    folder, model, _ = saved
    config = folder.config.read_text()
    folder.config.write_text(config.replace('"d_ff": 64', '"d_ff": 128'))
    with pytest.raises(UserError, match=r"no checkpoint under .* can be read"):
        load_params(folder, dataclasses.replace(model, d_ff=128), make_mesh(MeshConfig()))
    folder.config.write_text(config)
    warning = capsys.readouterr().err
    assert "has shape (2, 64, 32), not (2, 128, 32)" in warning
    assert warning.count("\n") == 1


COMPLETE = """
import sys
from codellama_jax.checkpoints.loading import load_run
from codellama_jax.generation import commands
from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import complete
run = load_run(sys.argv[1])
print(len(complete(run, ["def name"], Sampling(max_new_tokens=2))))
loaded = [name for name in sys.modules if name.split(".")[0] in ("optax", "orbax", "tensorboardX")]
print(loaded, [name for name in sys.modules if name.startswith("codellama_jax.training")])
"""


def test_a_completion_loads_no_part_of_the_trainer(saved):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    command = [sys.executable, "-c", COMPLETE, str(saved[0])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "1\n[] []\n", done.stderr
