"""Weights in and out without torch: round trips, meshes, growth, and what is refused."""

import collections
import errno
import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import toy
from etils import epath
from paths import ROOT

from codellama_jax.checkpoints import vocabulary
from codellama_jax.checkpoints.loading import load_run
from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.generation.infill import infill
from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import complete
from codellama_jax.models.llama import params_json
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.tokenizers import files
from codellama_jax.weights import check, commands, huggingface, layout, load, meta, store

SOURCES = {"hf": huggingface.open_source, "meta": meta.open_source}


def placed(source, **mesh):
    stage = toy.stage(model=replace(source.model, compute_dtype="float32", remat="none"))
    return load.place_params(source, stage.model, make_mesh(MeshConfig(**mesh)))


@pytest.mark.parametrize(
    "mesh", [{}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 4}, {"data": 8, "fsdp": 1}]
)
@pytest.mark.parametrize("kind", ["hf", "meta"])
def test_published_weights_come_back_on_any_mesh(folders, params, kind, mesh):
    on_mesh = placed(SOURCES[kind](folders / kind), **mesh)
    published.assert_same(params, on_mesh)
    for name, weight in on_mesh["layers"]["ffn"].items():
        shares = {shard.data.size for shard in weight.addressable_shards}
        assert shares == {weight.size // (1 if mesh.get("data") else 8)}, name


def test_a_device_reads_only_its_part(folders):
    source, read = huggingface.open_source(folders / "hf"), collections.Counter()

    def counted(name, layer, index):
        part = source.read(name, layer, index)
        read[name, layer] = max(read[name, layer], part.size)
        return part

    placed(replace(source, read=counted), fsdp=4, tensor=2)
    for (name, _), size in read.items():
        full = np.prod(layout.shapes(published.MODEL)[name])
        assert size * (1 if "norm" in name else 8) == full, name


def test_an_imported_model_is_a_run(folders, params):
    model = load_run(str(folders / "run"))
    published.assert_same(params, model.params)
    assert model.config == replace(published.MODEL, compute_dtype="bfloat16", remat="full")
    assert model.tokenizer.fingerprint == published.tokenizer().fingerprint
    sampling = Sampling(max_new_tokens=3)
    assert (
        len(complete(model, ["def f(x):"], sampling))
        == len(infill(model, [("def f(", "\n")], sampling))
        == 1
    )


@pytest.mark.parametrize(
    "to,options", [("hf", {}), ("meta", {}), ("meta", {"ranks": 4}), ("hf", {"dtype": "bfloat16"})]
)
def test_export_undoes_import(folders, params, tmp_path, to, options):
    commands.Export(str(folders / "run"), str(tmp_path / "out"), to, **options)()
    source = SOURCES[to](epath.Path(tmp_path / "out"))
    assert source.model == huggingface.open_source(folders / "hf").model
    assert source.dtypes["q"] == options.get("dtype", "float32")
    published.assert_same(
        jax.tree.map(lambda a: a.astype(source.dtypes["q"]).astype("float32"), params),
        placed(source),
    )
    assert (
        files.load(tmp_path / "out" / "tokenizer.model").fingerprint
        == published.tokenizer().fingerprint
    )


def test_bfloat16_stays_bfloat16(params, tmp_path):
    source = published.source_of(params, published.MODEL, dtype="bfloat16")
    store.write_run(source, published.tokenizer(), "hf", epath.Path(tmp_path / "run"))
    again = store.open_run(epath.Path(tmp_path / "run"), "", "")
    assert set(again.dtypes.values()) == {jnp.dtype("bfloat16")}
    for key in layout.names(published.MODEL):
        np.testing.assert_array_equal(source.tensor(*key), again.tensor(*key))
    assert load_run(str(tmp_path / "run")).params["head"].dtype == "float32"


def test_tensors_may_be_in_any_number_of_files(folders, params, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "FILE_BYTES", 10_000)
    huggingface.write(
        published.source_of(params, published.MODEL),
        published.tokenizer(),
        epath.Path(tmp_path / "many"),
    )
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 10
    published.assert_same(params, placed(huggingface.open_source(epath.Path(tmp_path / "many"))))


def test_width_of_the_feed_forward_layer_survives_params_json():
    for d_model, d_ff in [
        (4096, 11_008),
        (5120, 13_824),
        (8192, 22_016),
        (8192, 28_672),
        (32, 64),
        (32, 87),
        (4096, 14_336),
    ]:
        params = params_json.params_of(replace(published.MODEL, d_model=d_model, d_ff=d_ff))
        width = params_json.ffn_width(d_model, params["multiple_of"], params["ffn_dim_multiplier"])
        assert width == d_ff


def test_vocabulary_grows(params):
    whole = {
        name: params[name][: published.PIECES] if name == "embedding" else params[name]
        for name in params
    }
    whole["head"] = params["head"][:, : published.PIECES]
    grown = vocabulary.resized(whole, published.MODEL.vocab_size)
    np.testing.assert_array_equal(grown["embedding"][: published.PIECES], whole["embedding"])
    np.testing.assert_array_equal(grown["head"][:, : published.PIECES], whole["head"])
    new_VD = np.asarray(grown["embedding"][published.PIECES :])
    assert (
        new_VD.std() == pytest.approx(whole["embedding"].std(), rel=0.1)
        and len(np.unique(new_VD[:, 0])) == 16
    )
    np.testing.assert_allclose(grown["head"][:, -1], whole["head"].mean(1), rtol=1e-5)
    published.assert_same(whole, vocabulary.resized(grown, published.PIECES))


@pytest.mark.parametrize("kind", ["hf", "meta", "run"])
def test_a_stage_starts_from_it_with_sentinels_added(params, tmp_path, kind):
    model = replace(published.MODEL, vocab_size=published.PIECES)
    source = published.source_of(
        {**params, "embedding": params["embedding"][:-16], "head": params["head"][:, :-16]}, model
    )
    folder = epath.Path(tmp_path / kind)
    writers = {"hf": huggingface.write, "meta": lambda *args: meta.write(*args, 1)}
    writers["run"] = lambda source, tokenizer, folder: store.write_run(
        source, tokenizer, "hf", folder
    )
    writers[kind](source, published.tokenizer(), folder)
    stage = toy.stage(model=published.MODEL, init=f"{kind}:{folder}")
    mesh = make_mesh(MeshConfig(tensor=4))
    grown = load.initial_params(stage, mesh)()
    assert (
        grown["embedding"].shape == (published.MODEL.vocab_size, published.MODEL.d_model)
        and grown["embedding"].sharding.spec[0] == "tensor"
    )
    published.assert_same(params["layers"], grown["layers"])
    for wrong in ({"vocab_size": 600}, {"n_layers": 3}, {"norm_eps": 1e-6}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            load.initial_params(replace(stage, model=replace(published.MODEL, **wrong)), mesh)


def test_a_run_is_taken_at_a_step(folders, params):
    stage, mesh = (
        toy.stage(model=published.MODEL, init=f"run:{folders / 'run'}@0"),
        make_mesh(MeshConfig()),
    )
    published.assert_same(params, load.initial_params(stage, mesh)())
    assert load.tokenizer_of(stage.init).fingerprint == published.tokenizer().fingerprint
    for init, message in [
        (stage.init[:-1] + "7", "no checkpoint of step 7: it has 0"),
        ("hf", "must be scratch"),
        ("s3:x", "must be scratch"),
    ]:
        with pytest.raises(UserError, match=message):
            load.initial_params(replace(stage, init=init), mesh)


def disk_gone():
    raise UserError("the disk is gone")


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


EVENTS = {disk_gone: UserError, disk_full: UserError, ctrl_c: KeyboardInterrupt}


@pytest.mark.parametrize("tensor", [("embedding", 0), ("down", 1)])
@pytest.mark.parametrize("happens", EVENTS)
def test_an_import_that_stops_leaves_nothing(folders, tmp_path, happens, tensor):
    source = huggingface.open_source(folders / "hf")

    def read(name, layer, index):
        if (name, layer) == tensor:
            happens()
        return source.read(name, layer, index)

    run = epath.Path(tmp_path / "run")
    with pytest.raises(EVENTS[happens]) as stopped:
        store.write_run(replace(source, read=read), published.tokenizer(), "hf", run)
    if happens is disk_full:
        assert str(stopped.value) == f"cannot write {run}: no space left on the device"
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(folders):
    hf, run = str(folders / "hf"), str(folders / "run")
    for command in (commands.Import(hf, run), commands.Export(run, hf, "hf")):
        with pytest.raises(UserError, match="exists already"):
            command()


@pytest.mark.parametrize("ranks", [3, 8])
def test_ranks_that_do_not_divide_are_refused(folders, tmp_path, ranks):
    with pytest.raises(UserError, match="cannot be split evenly"):
        commands.Export(str(folders / "run"), str(tmp_path / "out"), "meta", ranks=ranks)()
    assert not list(tmp_path.iterdir())


def test_check_compares_two_layouts(folders):
    rows = dict(check.compare(folders / "run", folders / "meta", published.TEXT, 48))
    assert (
        rows["tokens"].startswith("48, the same") and rows["same most likely token"] == "48 of 48"
    )
    assert float(rows["largest logit difference"]) < 1e-5
    if not importlib.util.find_spec("transformers"):
        with pytest.raises(UserError, match="--against"):
            check.compare(folders / "hf", None, published.TEXT, 48)


def test_measures_of_two_tables_of_logits():
    a_TV, b_TV = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.5, 0.5], [0.75, 0.25]])
    difference, divergence, agreed = check.measures(a_TV + 1.0, b_TV)
    assert difference == pytest.approx(1 + np.log(3)) and agreed == 1
    assert divergence == pytest.approx((0 + 0.75 * np.log(3) - 0.25 * np.log(3)) / 2, rel=1e-5)


def test_the_command_line_ends_with_2(tmp_path):
    argv = [sys.executable, "-m", "codellama_jax", "import", str(tmp_path), str(tmp_path / "run")]
    process = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    progress, error = process.stderr.splitlines()
    assert (process.returncode, progress) == (2, f"opening {tmp_path}")
    assert error.startswith("error: ") and "neither config.json nor params.json" in error
