"""Checkpoints of adapters: small, read with the weights of their base, and with no others."""

import json

import chex
import jax
import pytest
import toy
from etils import epath
from lora_cases import adapted_stage, random_adapters, write_stage
from published import random_params

from codellama_jax.checkpoints import base as bases
from codellama_jax.checkpoints.base import Base, recorded_base
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.checkpoints.loading import load_frozen, load_params
from codellama_jax.config import LoraConfig, MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.models.lora import merged
from codellama_jax.sharding.mesh import make_mesh

LORA = LoraConfig(2, targets=("q", "down"))
STAGE = adapted_stage(LORA)
MODEL = STAGE.model


def write(run, seed: int = 0):
    """Writes a base and a stage with adapters of it. Returns the folder of the latter."""
    base = write_stage(run / "main" / "base", toy.stage(), random_params(MODEL, seed))
    _, read = load_frozen(STAGE, Base(base, None), make_mesh(MeshConfig()))
    return write_stage(run / "main" / "tuned", STAGE, random_adapters(MODEL, LORA), read)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return write(epath.Path(tmp_path_factory.mktemp("lora")) / "run")


def test_a_checkpoint_is_read_with_its_base(tuned):
    params = load_params(tuned, MODEL, make_mesh(MeshConfig()))
    expected = merged(MODEL, LORA, random_params(MODEL), random_adapters(MODEL, LORA))
    chex.assert_trees_all_close(jax.device_get(params), jax.device_get(expected), atol=1e-6)
    stored = json.loads((tuned.checkpoint(0) / "checksums" / "metadata").read_text())
    assert set(stored["params"]) == {
        "layers.attention.qkv.q.a",
        "layers.attention.qkv.q.b",
        "layers.ffn.down.down.a",
        "layers.ffn.down.down.b",
    }


def test_a_base_that_is_damaged_for_another_host_is_damaged_here_too(tuned, monkeypatch):
    """Otherwise one host would use another checkpoint than the others."""

    def with_another_host(action):
        action()
        raise UserError("damaged at host 1")

    checkpoint = tuned.checkpoint(0)
    assert recorded_base(checkpoint).step == 0
    monkeypatch.setattr(bases, "on_all_hosts", with_another_host)
    with pytest.raises(UserError, match="damaged at host 1"):
        recorded_base(checkpoint)


def test_a_run_may_be_moved(tuned, tmp_path):
    run = tuned.path.parent.parent
    moved = run.rename(epath.Path(tmp_path) / "moved")
    folder = StageFolder(moved / "main" / "tuned")
    load_params(folder, MODEL, make_mesh(MeshConfig()))
    moved.rename(run)


def test_other_weights_in_the_place_of_the_base(tmp_path):
    run = epath.Path(tmp_path) / "run"
    tuned = write(run)
    (run / "main" / "base").rmtree()
    mesh = make_mesh(MeshConfig())
    with pytest.raises(UserError, match=r"there is no folder .*base, whose weights"):
        load_params(tuned, MODEL, mesh)
    write_stage(run / "main" / "base", toy.stage(), random_params(MODEL, 1))
    with pytest.raises(UserError, match=r"base/checkpoints/step_0 holds other weights than those"):
        load_params(tuned, MODEL, mesh)
