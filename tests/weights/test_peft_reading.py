"""Adapters of PEFT become a run on their base, and a folder that does not fit is one line."""

import json
import re
import shutil

import jax
import lora_cases
import numpy as np
import published
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from codellama_jax.checkpoints.base import Base
from codellama_jax.checkpoints.folder import find_trained
from codellama_jax.checkpoints.loading import load_frozen, load_run
from codellama_jax.config import LoraConfig, MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.weights import commands, peft

LORA = LoraConfig(2, alpha=5.0, targets=("q", "k", "o", "up", "down"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, a run with adapters of it, and the folder that PEFT would write of them."""
    folder = epath.Path(tmp_path_factory.mktemp("peft"))
    params = published.random_params(published.MODEL)
    plain = lora_cases.toy.stage(model=published.MODEL)
    base = lora_cases.write_stage(folder / "base", plain, params)
    stage = lora_cases.adapted_stage(LORA, model=published.MODEL)
    _, read = load_frozen(stage, Base(base, None), make_mesh(MeshConfig()))
    adapters = lora_cases.random_adapters(published.MODEL, LORA)
    lora_cases.write_stage(folder / "tuned", stage, adapters, read)
    for name in ("base", "tuned"):
        published.tokenizer().save(folder / name / "tokenizer.model")
    peft.write_adapter(folder / "tuned", "", "", folder / "adapter")
    return folder


@pytest.fixture
def damaged(runs, tmp_path):
    """A copy of the adapter's folder."""
    return epath.Path(shutil.copytree(runs / "adapter", tmp_path / "adapter"))


def imported(runs, folder, target, **options):
    commands.Import(str(folder), str(target), base=str(runs / "base"), **options)()


def test_an_imported_folder_has_the_weights_of_the_run_that_wrote_it(runs, tmp_path):
    tmp_path = epath.Path(tmp_path)
    imported(runs, runs / "adapter", tmp_path / "run", integrity=True)
    tuned, again = load_run(str(runs / "tuned")), load_run(str(tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, again.params, tuned.params)
    assert again.tokenizer.fingerprint == tuned.tokenizer.fingerprint
    _, stage = find_trained(tmp_path / "run")
    assert stage.lora == LORA and stage.init == f"run:{runs / 'base'}"
    # Export reads it as any run with adapters.
    peft.write_adapter(tmp_path / "run", "", "", tmp_path / "adapter")
    first, second = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (runs, tmp_path)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # Other weights in the place of the base are noticed.
    identity = json.loads(
        next((tmp_path / "run").glob("*/*/checkpoints/*/base/metadata")).read_text()
    )["identity"]
    assert re.fullmatch("[0-9a-f]{64}", identity)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"peft_type": "LOHA"}, "peft_type is the string 'LOHA': only LORA is read"),
        ({"use_dora": True}, "use_dora is true, which is not read: merge the adapters"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is an object, which is not read"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is .*, which is not read"),
        ({"bias": "all"}, "bias is the string 'all', not none: merge"),
        ({"init_lora_weights": "pissa_niter_4"}, "is pissa_niter_4, which changed the base"),
        ({"r": 0}, "r must be a whole number|r is 0"),
        ({"r": 3}, r"has shape \(2, 32\), the base needs \(3, 32\): give the run"),
        ({"lora_alpha": "x"}, "lora_alpha"),
    ],
)
def test_an_option_that_is_not_read_is_one_line(runs, damaged, tmp_path, change, line):
    path = damaged / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(runs, damaged, tmp_path, line)


def removed(folder):
    (folder / "adapter_model.safetensors").unlink()


def as_torch(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def renamed(old, new):
    """Returns a function that renames tensors of a folder."""

    def rename(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({name.replace(old, new): array for name, array in tensors.items()}, path)

    return rename


def of_dtype(dtype):
    """Returns a function that stores the tensors of a folder in another type."""

    def change(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({name: array.astype(dtype) for name, array in tensors.items()}, path)

    return change


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (of_dtype("float8_e4m3fn"), "lora_A.weight is F8_E4M3: only adapters in F32, F16, BF16"),
        (of_dtype("int8"), "lora_A.weight is I8: only adapters in F32, F16, BF16 are"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (removed, "has no adapter_model.safetensors: copy it too"),
        (as_torch, "only adapter_model.bin: save the adapters again with safe_serialization=True"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "is damaged"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json"),
        (renamed("0.self_attn.q_proj.lora_B", "9.x"), "has no .*0.self_attn.q_proj.lora_B"),
        (renamed("layers.1.", "layers.7."), "has no .*layers.1.*lora_A"),
        (renamed("mlp", "block"), "tensor .*block.* is no adapter of a matmul of the base's lay"),
        (renamed("base_model", "my_model"), "tensor my_model.* is no adapter of a matmul"),
    ],
)
def test_a_damaged_folder_is_one_line(runs, damaged, tmp_path, damage, line):
    damage(damaged)
    refused(runs, damaged, tmp_path, line)


def refused(runs, folder, tmp_path, line):
    with pytest.raises(UserError, match=line) as raised:
        imported(runs, folder, tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_adapters_need_their_base(runs, tmp_path):
    with pytest.raises(UserError, match=r"adapters of PEFT, not a model: name .* with --base RUN"):
        commands.Import(str(runs / "adapter"), str(tmp_path / "run"))()
    with pytest.raises(UserError, match=r"--tokenizer is t\.model: leave it out"):
        imported(runs, runs / "adapter", tmp_path / "run", tokenizer="t.model")
