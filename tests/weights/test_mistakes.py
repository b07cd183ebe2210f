"""Folders of weights that are damaged, incomplete, ambiguous or of another kind: one line each."""

import os
import pickle
import re
import shutil

import hypothesis.strategies as st
import pytest
from damage import (
    INDEX,
    SHARD,
    Exploit,
    cut,
    edited,
    edited_params,
    header,
    indexed,
    mixed,
    repickled,
    replaced,
    retyped,
    rewritten,
)
from etils import epath
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file

from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.errors import UserError
from codellama_jax.weights import commands, huggingface, layout, load

Q = "model.layers.1.self_attn.q_proj.weight"
DEEP = "[" * 100_000
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
OTHER_SHAPE = r"has shape .*, but config.json describes \("
HF = {  # what is done to a folder, and what the message must match
    "truncated": (lambda f: cut(f / "model.safetensors"), "model.safetensors is damaged"),
    "header": (lambda f: cut(f / "model.safetensors", 20), "model.safetensors is damaged"),
    "longest": (lambda f: header(f, 2**64 - 1), "model.safetensors is damaged: .*[Hh]eader"),
    "long": (lambda f: header(f, 99_000_000), "model.safetensors is damaged"),
    "short": (lambda f: header(f, 3), "model.safetensors is damaged"),
    "empty": (lambda f: cut(f / "model.safetensors", 0), "model.safetensors is empty"),
    "missing": (lambda f: rewritten(f, lambda t: t.pop(Q)), f"lacks {Q}"),
    "extra": (lambda f: rewritten(f, lambda t: t.update(x=t[Q])), "no place for: x"),
    "integers": (lambda f: retyped(f, Q, "int8"), f"{Q} is I8: only float32, float16, bfloat16"),
    "doubles": (lambda f: retyped(f, Q, "float64"), f"{Q} is F64"),
    "flat": (lambda f: rewritten(f, lambda t: t.update({Q: t[Q].ravel()})), OTHER_SHAPE),
    "width": (lambda f: edited(f, intermediate_size=65), OTHER_SHAPE),
    "heads": (lambda f: edited(f, num_key_value_heads=2), OTHER_SHAPE),
    "rows": (lambda f: edited(f, vocab_size=32_000), OTHER_SHAPE),
    "layers": (lambda f: edited(f, num_hidden_layers=1), "no place for"),
    # transformers 5 computes with the separate head, which was dropped here.
    "tied": (
        lambda f: edited(f, tie_word_embeddings=True),
        "tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight:",
    ),
    "deep": (lambda f: edited(f, num_hidden_layers=9_999), "lacks model.layers.2.*: is the down"),
    "file": (lambda f: (f / "model.safetensors").unlink(), "has no .*safetensors: is the download"),
    "bin": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "has no .*safetensors: save it with safe_serialization=True",
    ),
    "folder": (
        lambda f: replaced(f / "model.safetensors", os.mkdir),
        "model.safetensors is a folder",
    ),
    "pipe": (
        lambda f: replaced(f / "model.safetensors", os.mkfifo),
        "model.safetensors is not a regular file",
    ),
    "loop": (
        lambda f: replaced(f / "model.safetensors", lambda p: os.symlink(p.name, p)),
        "cannot read .*model.safetensors: Too many levels of symbolic links",
    ),
    "link": (
        lambda f: replaced(f / "model.safetensors", lambda p: os.symlink("blobs/1a2b", p)),
        "model.safetensors is a link to blobs/1a2b, which does not exist",
    ),
    "pointer": (
        lambda f: (f / "model.safetensors").write_text(POINTER),
        "model.safetensors is a git-lfs pointer, not the file itself: run `git lfs pull`",
    ),
    "page": (
        lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html><html></html>"),
        "model.safetensors is an HTML page, not weights",
    ),
    "index": (lambda f: indexed(f, "{"), "index.json is not valid JSON"),
    "unindexed": (lambda f: indexed(f, "{}"), "weight_map is missing"),
    "null": (lambda f: indexed(f, '{"weight_map": null}'), "weight_map must be .*, got null"),
    "nowhere": (lambda f: indexed(f, '{"weight_map": {}}'), "weight_map must be"),
    "listed": (lambda f: indexed(f, '{"weight_map": []}'), "weight_map must be .*, got a list"),
    "no_name": (lambda f: indexed(f, '{"weight_map": {"x": null}}'), "file of 'x' .*, got null"),
    "a_number": (lambda f: indexed(f, '{"weight_map": {"x": 5}}'), "file of 'x' .*, got 5"),
    "a_list": (lambda f: indexed(f, '{"weight_map": {"x": []}}'), "file of 'x' .*, got a list"),
    "up": (lambda f: indexed(f, '{"weight_map": {"x": "../y"}}'), "same folder, got the string"),
    "elsewhere": (lambda f: indexed(f, '{"weight_map": {"x": "y"}}'), "has no y: is the download"),
    "shards": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00003.safetensors"),
        "has no model-00002-of-00003.safetensors, model-00003-of-00003.safetensors",
    ),
    "tokenizer": (
        lambda f: (f / "tokenizer.model").unlink(),
        "has no tokenizer.model, .*: its tokenizer.json is not byte-level BPE; name .*--tok",
    ),
    "lfs_tokenizer": (
        lambda f: (f / "tokenizer.model").write_text(POINTER),
        "tokenizer.model is a git-lfs pointer",
    ),
}
META = {
    "code": (lambda f: repickled(f, pickle.dumps({"a": Exploit()}, 2)), "system, .* was not run"),
    "pickle": (lambda f: repickled(f, b"no pickle"), "cannot be unpickled"),
    "number": (lambda f: repickled(f, pickle.dumps(1)), "something other than tensors"),
    "zip": (lambda f: cut(f / "consolidated.01.pth"), "consolidated.01.pth is not a complete file"),
    "empty": (lambda f: cut(f / "consolidated.01.pth", 0), "consolidated.01.pth is empty"),
    "pipe": (
        lambda f: replaced(f / "consolidated.00.pth", os.mkfifo),
        "consolidated.00.pth is not a regular file",
    ),
    "pointer": (
        lambda f: (f / "consolidated.00.pth").write_text(POINTER),
        "consolidated.00.pth is a git-lfs pointer",
    ),
    "rank": (lambda f: (f / "consolidated.00.pth").unlink(), "not all files from .*00.pth to .*01"),
    "ranks": (
        lambda f: (f / "consolidated.01.pth").unlink(),
        "has shape .*, but params.json describes",
    ),
    "dim": (lambda f: edited_params(f, dim=64), "has shape .*, but params.json describes"),
    "mixed": (mixed, "another shape or dtype"),
    "renamed": (
        lambda f: shutil.move(f / "consolidated.00.pth", f / "model.pth"),
        "not all files from consolidated.00.pth",
    ),
}
CASES = [("hf", name) for name in HF] + [("meta", name) for name in META]


def refusal(folder, tmp_path):
    """Returns the message with which an import is refused; nothing may be left of it."""
    with pytest.raises(UserError) as error:
        commands.Import(str(folder), str(tmp_path / "run"))()
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    return str(error.value)


@pytest.mark.parametrize("kind, mistake", CASES)
def test_a_bad_folder_is_one_line_and_no_run(folders, tmp_path, monkeypatch, kind, mistake):
    damage, message = (HF if kind == "hf" else META)[mistake]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders / kind, tmp_path / "bad")
    damage(epath.Path(tmp_path / "bad"))
    assert re.search(message, refusal(tmp_path / "bad", tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", [".", "model.safetensors", "config.json"])
def test_a_file_without_permission_is_one_line(folders, tmp_path, name):
    shutil.copytree(folders / "hf", tmp_path / "bad")
    (tmp_path / "bad" / name).chmod(0)
    try:
        assert "Permission denied" in refusal(tmp_path / "bad", tmp_path)
    finally:
        (tmp_path / "bad" / name).chmod(0o700)


def test_a_tied_model_may_hold_its_embedding_twice(folders, tmp_path):
    shutil.copytree(folders / "hf", tmp_path / "hf")
    table = "model.embed_tokens.weight"
    rewritten(tmp_path / "hf", lambda t: t.update({"lm_head.weight": t[table]}))
    edited(tmp_path / "hf", tie_word_embeddings=True)
    _, source = load.open_published(epath.Path(tmp_path / "hf"))
    assert source.model.tied_embeddings


def test_published_weights_in_place_of_a_run_name_the_command_that_makes_one(folders, tmp_path):
    (tmp_path / "model.gguf").touch()
    for weights in (folders / "hf", folders / "meta", tmp_path / "model.gguf"):
        with pytest.raises(UserError, match="is not the folder of a run: .*`launch.py import"):
            RunFolder(epath.Path(weights)).find_stage()


def test_a_file_instead_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder, message in (("file", "is a file"), ("absent", "there is no folder")):
        with pytest.raises(UserError, match=message):
            load.kind_of(epath.Path(tmp_path / folder))


def test_a_single_file_is_read_before_shards_and_every_other_file_is_named(
    folders, tmp_path, capsys
):
    shutil.copytree(folders / "hf", tmp_path / "hf")
    folder = epath.Path(tmp_path / "hf")
    (folder / INDEX).write_text('{"weight_map": {"x": "model-00001-of-00001.safetensors"}}')
    for other in (SHARD, "consolidated.safetensors", "pytorch_model.bin", "params.json"):
        (folder / other).write_text("other weights")
    assert load.kind_of(folder) == "hf"
    source = huggingface.open_source(folder)
    np_equal(source, huggingface.open_source(folders / "hf"))
    warning = " ".join(capsys.readouterr().err.split())
    assert (
        f"weights are read from model.safetensors; not used: consolidated.safetensors, {SHARD},"
        in warning
    )


def np_equal(a, b):
    for key in layout.names(a.model):
        assert (a.tensor(*key) == b.tensor(*key)).all()


def halves(folder, first="model-00001-of-00002", second="model-00002-of-00002", shared=()):
    """Makes two files of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    parts = (names[:9], [*names[9:], *shared])
    for file, part in zip((first, second), parts):
        save_file({name: tensors[name] for name in part}, folder / f"{file}.safetensors")
    return names


def test_shards_without_an_index_are_read_if_they_are_disjoint(folders, tmp_path):
    shutil.copytree(folders / "hf", tmp_path / "hf")
    halves(tmp_path / "hf")
    np_equal(
        huggingface.open_source(epath.Path(tmp_path / "hf")),
        huggingface.open_source(folders / "hf"),
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"shared": ["lm_head.weight"]},
            "tensor lm_head.weight is in both model-00001-of",
        ),
        ({"second": "other-00002-of-00002"}, "shards of several models"),
        ({"second": "model-00002-of-00007"}, "shards of several models"),
    ],
)
def test_ambiguous_shards_are_refused(folders, tmp_path, options, message):
    shutil.copytree(folders / "hf", tmp_path / "hf")
    halves(tmp_path / "hf", **options)
    with pytest.raises(UserError, match=message):
        huggingface.open_source(epath.Path(tmp_path / "hf"))


def test_a_folder_of_both_layouts_is_read_as_transformers_does(folders, tmp_path, capsys):
    shutil.copytree(folders / "hf", tmp_path / "both")
    shutil.copytree(folders / "meta", tmp_path / "both", dirs_exist_ok=True)
    folder = epath.Path(tmp_path / "both")
    kind, _ = load.open_published(folder)
    assert kind == "hf"
    assert "not used: consolidated.00.pth, consolidated.01.pth, params.json" in " ".join(
        capsys.readouterr().err.split()
    )
    (folder / "model.safetensors").unlink()
    kind, _ = load.open_published(folder)
    assert kind == "meta" and "not used: config.json" in capsys.readouterr().err
    for file in folder.glob("*.pth"):
        file.unlink()
    (folder / "consolidated.safetensors").touch()
    with pytest.raises(UserError, match=r"consolidated.safetensors is empty"):
        load.open_published(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no consolidated.NN.pth, only consolidated.safetensors"):
        load.open_published(folder)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 255), st.sampled_from(["hf", "meta"]))
def test_a_flipped_byte_of_a_header_is_one_line_or_none(folders, position, flip, kind):
    file = {"hf": "model.safetensors", "meta": "consolidated.00.pth"}[kind]
    folder = epath.Path(folders / f"flipped_{kind}")
    if not folder.exists():
        shutil.copytree(folders / kind, folder)
    data = bytearray((folders / kind / file).read_bytes())
    # The directory of a zip file is at its end.
    data[position if kind == "hf" else -1 - position] ^= flip
    (folder / file).write_bytes(data)
    try:
        source = load.open_published(folder)[1]
        for key in layout.names(source.model):
            source.tensor(*key)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_file_that_shrinks_after_it_was_opened_is_one_line(folders, tmp_path):
    for kind, file in (("hf", "model.safetensors"), ("meta", "consolidated.01.pth")):
        shutil.copytree(folders / kind, tmp_path / kind)
        source = load.open_published(epath.Path(tmp_path / kind))[1]
        os.truncate(tmp_path / kind / file, 500)
        with pytest.raises(UserError, match=file):
            for key in layout.names(source.model):
                source.tensor(*key)


@pytest.mark.parametrize("text", [DEEP, "", "\0" * 99, "[]", "5", "null", '{"a": ', POINTER])
@pytest.mark.parametrize("file", ["config.json", "params.json", INDEX])
def test_a_file_of_settings_that_is_none_is_one_line(folders, tmp_path, file, text):
    kind = "meta" if file == "params.json" else "hf"
    shutil.copytree(folders / kind, tmp_path / "bad")
    if file == INDEX:
        (tmp_path / "bad" / "model.safetensors").rename(tmp_path / "bad" / SHARD)
    (tmp_path / "bad" / file).write_text(text)
    assert file in refusal(tmp_path / "bad", tmp_path)


def test_settings_in_other_encodings_are_read(folders, tmp_path):
    shutil.copytree(folders / "hf", tmp_path / "hf")
    text = (folders / "hf" / "config.json").read_text()
    expected = huggingface.open_source(folders / "hf").model
    for encoding in ("utf-8-sig", "utf-16", "utf-8"):
        (tmp_path / "hf" / "config.json").write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert huggingface.open_source(epath.Path(tmp_path / "hf")).model == expected
    (tmp_path / "hf" / "config.json").write_text("<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"config.json is an HTML or XML page, not JSON"):
        load.kind_of(epath.Path(tmp_path / "hf"))
    (tmp_path / "hf" / "config.json").unlink()
    (tmp_path / "hf" / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config.json is a folder"):
        load.kind_of(epath.Path(tmp_path / "hf"))
