"""Folders of stages that were trained elsewhere."""

import pytest
import toy
from etils import epath

from codellama_jax.checkpoints import folder as reuse

X, Y = "0" * 32, "1" * 32  # identities


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


def test_a_folder_on_a_bucket_is_named_whole(tmp_path):
    here = epath.Path(tmp_path) / "code"
    reuse.point(here, toy.stage(), epath.Path("gs://bucket/runs/one/arm/code"))
    assert str(reuse.followed(here)) == "gs://bucket/runs/one/arm/code"


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
