"""What makes two stages equal, and folders that name another one."""

import dataclasses
import json

import hypothesis.strategies as st
import pytest
import toy
from etils import epath
from hypothesis import given

from codellama_jax.checked import unchecked
from codellama_jax.checkpoints import folder as reuse
from codellama_jax.config import InfillingConfig, leaves, to_dict
from codellama_jax.errors import UserError
from codellama_jax.report.reading import read_stage
from codellama_jax.system import files

FREE = {
    ".model.remat": "full",
    ".model.attention": "xla",
    ".micro_batches": 2,
    ".log_every": 7,
    ".checkpoint_every": 9,
    ".keep_checkpoints": 1,
}
X, Y = "0" * 32, "1" * 32  # identities


def changed(stage, name: str, value):
    """Returns the stage with the field of this dotted name changed."""
    first, _, rest = name.lstrip(".").partition(".")
    return dataclasses.replace(
        stage, **{first: changed(getattr(stage, first), rest, value) if rest else value}
    )


def other(value):
    return f"{value}x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("name", leaves(to_dict(toy.stage()), "."))
def test_every_field_but_the_free_ones_decides(name):
    stage = toy.stage()
    value = FREE.get(name, other(leaves(to_dict(stage), ".")[name]))
    with unchecked():  # "float32x" stands for any other value
        different = changed(stage, name, value)
    same = reuse.identity(stage, "before", 0) == reuse.identity(different, "before", 0)
    assert same == (name in FREE)


def test_seed_documents_and_the_stage_before_decide():
    follows, scratch = toy.stage(init="previous"), toy.stage()
    assert reuse.identity(follows, "a", 0) != reuse.identity(follows, "b", 0)
    assert reuse.identity(scratch, "a", 0) == reuse.identity(scratch, "b", 0)
    assert reuse.identity(scratch, "", 0) != reuse.identity(scratch, "", 1)
    assert reuse.identity(scratch, "", 0, ["documents"]) != reuse.identity(
        scratch, "", 0, ["others"]
    )


@given(st.floats(0, 1), st.floats(0, 1))
def test_equal_configs_have_one_identity(a, b):
    of = lambda rate: reuse.identity(
        dataclasses.replace(
            toy.stage(), data=changed(toy.stage().data, "infilling", InfillingConfig(rate))
        ),
        "",
        0,
    )
    assert (of(a) == of(b)) == (a == b)


def finished(folder: epath.Path, identity: str) -> epath.Path:
    folder.mkdir(parents=True)
    (folder / reuse.IDENTITY).write_text(identity)
    (folder / reuse.DONE).write_text('{"step": 10}')
    return folder


def test_a_folder_that_points_moves_with_what_it_points_to(tmp_path):
    runs = epath.Path(tmp_path) / "runs"
    trained = finished(runs / "one" / "arm" / "code", X)
    (begun := runs / "one" / "arm" / "later").mkdir()
    (begun / reuse.IDENTITY).write_text(Y)
    reuse.point(runs / "two" / "arm" / "code", toy.stage(), trained)
    assert reuse.trained_under(runs) == {
        X: trained
    }  # neither the unfinished one nor the one that points
    moved = runs.rename(tmp_path / "moved")
    here = epath.Path(moved) / "two" / "arm" / "code"
    assert reuse.followed(here) == epath.Path(moved) / "one" / "arm" / "code"
    assert reuse.is_trained(here)
    (reuse.followed(here) / reuse.DONE).unlink()
    assert not reuse.is_trained(here)


def test_a_run_that_was_set_aside_is_not_read(tmp_path):
    runs = epath.Path(tmp_path)
    trained = finished(runs / "run" / "arm" / "code", X)
    finished(runs / "run.1" / "arm" / "code", Y)
    (runs / "run.1" / reuse.ASIDE).touch()
    assert reuse.trained_under(runs) == {X: trained}


def test_a_folder_on_a_bucket_is_named_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUCKET_PACKAGES", {})  # gcsfs is in the extra `tpu` only
    here = epath.Path(tmp_path) / "code"
    reuse.point(here, toy.stage(), epath.Path("gs://bucket/runs/one/arm/code"))
    assert str(reuse.followed(here)) == "gs://bucket/runs/one/arm/code"


@pytest.mark.parametrize(
    "at, why", [("gs://bucket/x", "needs the package no_such"), ("ftp7://x", "scheme 'ftp7'")]
)
def test_an_object_store_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, at, why):
    monkeypatch.setattr(files, "BUCKET_PACKAGES", {"gs": "no_such_package"})
    monkeypatch.setattr(files.importlib.util, "find_spec", {}.get)
    folder = finished(epath.Path(tmp_path) / "run" / "arm" / "code", X)
    (folder / reuse.DONE).write_text(json.dumps({"at": at}))
    for read in (reuse.followed, reuse.is_trained):
        with pytest.raises(UserError, match=f"{folder / reuse.DONE}: the path '{at}' .*{why}"):
            read(folder)
    result = read_stage(folder, "code", toy.stage())
    assert "done.json cannot be read" in result.damage[0]


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b'{"step": 1', b"[]", b"5"])
def test_damaged_state_counts_as_not_trained(tmp_path, data):
    folder = finished(epath.Path(tmp_path) / "run" / "arm" / "code", X)
    assert reuse.is_trained(folder)
    (folder / reuse.DONE).write_bytes(data)
    assert not reuse.is_trained(folder)
    assert reuse.followed(folder) == folder
    (folder / reuse.DONE).write_text("{}")
    (folder / reuse.IDENTITY).write_bytes(data)
    assert reuse.identity_of(folder) == ""
    assert reuse.trained_under(epath.Path(tmp_path)) == {}
