"""Folders of runs and stages: which stage a path names, and where an equal one was trained."""

import json

import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, StageFolder, find_trained, trained_under
from codellama_jax.config import Experiment, to_dict
from codellama_jax.errors import UserError
from codellama_jax.report.reading import read_stage
from codellama_jax.system import files

X, Y = "0" * 32, "1" * 32  # identities


def finished(path: epath.Path, identity: str) -> StageFolder:
    folder = StageFolder(path)
    folder.path.mkdir(parents=True)
    folder.identity_file.write_text(identity)
    folder.mark_done(step=10, tokens=100)
    return folder


def test_a_folder_that_points_moves_with_what_it_points_to(tmp_path):
    runs = epath.Path(tmp_path) / "runs"
    trained = finished(runs / "one" / "arm" / "code", X)
    (begun := runs / "one" / "arm" / "later").mkdir()
    StageFolder(begun).identity_file.write_text(Y)
    RunFolder(runs / "two").stage("arm", "code").point_to(trained, toy.stage())
    # Neither the unfinished one nor the one that points.
    assert trained_under(runs) == {X: trained}
    moved = runs.rename(tmp_path / "moved")
    here = StageFolder(epath.Path(moved) / "two" / "arm" / "code")
    assert here.trained() == StageFolder(epath.Path(moved) / "one" / "arm" / "code")
    assert here.is_trained()
    here.trained().done.unlink()
    assert not here.is_trained()


def test_a_stage_that_was_begun_and_then_read_elsewhere_is_not_taken_for_trained(tmp_path):
    """It keeps its identity and the checkpoints of its first steps."""
    runs = epath.Path(tmp_path)
    trained = finished(runs / "a" / "arm" / "code", X)
    begun = RunFolder(runs / "b").stage("arm", "code")
    begun.begin(toy.stage(), X)
    begun.checkpoint(3).mkdir(parents=True)
    begun.point_to(trained, toy.stage())
    assert trained_under(runs) == {X: trained}
    # An older version wrote such a path.
    third = RunFolder(runs / "c").stage("arm", "code")
    third.point_to(begun, toy.stage())
    assert third.trained() == trained
    trained.done.unlink()
    assert not third.is_trained()
    trained.point_to(third, toy.stage())
    assert not third.is_trained()  # a circle ends


def test_another_run_in_the_place_of_the_one_that_was_read_is_not_taken_for_it(tmp_path):
    """As after --fresh with other options, which renames the run that was read."""
    runs = epath.Path(tmp_path)
    trained = finished(runs / "one" / "arm" / "code", X)
    here = RunFolder(runs / "two").stage("arm", "code")
    here.point_to(trained, toy.stage())
    assert here.is_trained()
    (runs / "one").rename(runs / "one.1")
    finished(trained.path, Y)
    assert not here.is_trained()
    assert here.trained() == here
    here.begin(toy.stage(), X)
    assert here.identity() == X


def test_a_run_that_was_set_aside_is_not_read(tmp_path):
    runs = epath.Path(tmp_path)
    trained = finished(runs / "run" / "arm" / "code", X)
    finished(runs / "run.1" / "arm" / "code", Y)
    RunFolder(runs / "run.1").set_aside.touch()
    assert trained_under(runs) == {X: trained}


def test_a_folder_on_a_bucket_is_named_by_its_full_path(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUCKET_PACKAGES", {})  # gcsfs is in the extra `tpu` only
    here = StageFolder(epath.Path(tmp_path) / "code")
    here.point_to(StageFolder(epath.Path("gs://bucket/runs/one/arm/code")), toy.stage())
    assert str(here.trained()) == "gs://bucket/runs/one/arm/code"


@pytest.mark.parametrize(
    "target, why", [("gs://bucket/x", "needs the package no_such"), ("ftp7://x", "scheme 'ftp7'")]
)
def test_an_object_store_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, target, why):
    monkeypatch.setattr(files, "BUCKET_PACKAGES", {"gs": "no_such_package"})
    monkeypatch.setattr(files.importlib.util, "find_spec", {}.get)
    folder = finished(epath.Path(tmp_path) / "run" / "arm" / "code", X)
    folder.done.write_text(json.dumps({"at": target}))
    for read in (folder.trained, folder.is_trained):
        with pytest.raises(UserError, match=f"{folder.done}: the path '{target}' .*{why}"):
            read()
    result = read_stage(folder, "code", toy.stage())
    assert "done.json cannot be read" in result.damage[0]


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b'{"step": 1', b"[]", b"5"])
def test_damaged_state_counts_as_not_trained(tmp_path, data):
    folder = finished(epath.Path(tmp_path) / "run" / "arm" / "code", X)
    assert folder.is_trained()
    folder.done.write_bytes(data)
    assert not folder.is_trained()
    assert folder.trained() == folder
    folder.done.write_text("{}")
    folder.identity_file.write_bytes(data)
    assert folder.identity() == ""
    assert trained_under(epath.Path(tmp_path)) == {}


def test_a_stage_that_is_begun_again_keeps_its_identity(tmp_path):
    folder = StageFolder(epath.Path(tmp_path) / "code")
    folder.begin(toy.stage(), Y)
    # Nothing was trained: what decides its result is what the next start reads.
    folder.begin(toy.stage(), X)
    assert folder.identity() == X
    folder.checkpoint(10).mkdir(parents=True)
    folder.mark_done(step=10, tokens=100)
    folder.begin(toy.stage(), Y)
    assert folder.identity() == X
    assert not folder.is_trained()
    assert folder.read_config() == toy.stage()


def test_checkpoints_are_complete_folders_of_a_step(tmp_path):
    folder = StageFolder(epath.Path(tmp_path) / "code")
    with pytest.raises(UserError, match=r"no checkpoint in .*code"):
        folder.steps()
    for name in ("step_3", "step_20", "step_4.orbax-checkpoint-tmp-5", "other"):
        (folder.checkpoints / name).mkdir(parents=True)
    folder.checkpoint(7).write_text("a file")
    assert folder.steps() == [20, 3]
    assert folder.steps(3) == [3]
    with pytest.raises(UserError, match="no checkpoint of step 7: it has 3, 20"):
        folder.steps(7)


def test_a_path_names_a_run_or_a_stage(tmp_path):
    run = RunFolder(epath.Path(tmp_path) / "run")
    chain = {"code": toy.stage(), "long": toy.stage(seq_len=32), "more": toy.stage()}
    finished(run.stage("one", "code").path, X)
    run.config.write_text(json.dumps(to_dict(Experiment("x", "toy", {"one": chain}))))
    for name in ("code", "long"):
        finished(run.stage("one@1", name).path, Y)
    assert run.find_stage() == (run.stage("one", "code"), chain["code"])
    assert run.find_stage("one@1") == (run.stage("one@1", "long"), chain["long"])
    assert find_trained(run.path, stage="more") == (run.stage("one", "more"), chain["more"])
    with pytest.raises(UserError, match="has no two/code: it has one/code, one/long, one/more"):
        run.find_stage("two", "code")
    with pytest.raises(UserError, match=r"no stage of .*one@2 has finished yet"):
        run.find_stage("one@2")
    run.stage("one", "code").config.write_text(json.dumps(to_dict(chain["code"])))
    stage = RunFolder(run.stage("one", "code").path)
    assert stage.find_stage() == (run.stage("one", "code"), chain["code"])
    with pytest.raises(UserError, match="is the folder of a stage, in which --stage long selects"):
        stage.find_stage(stage="long")
    with pytest.raises(UserError, match="is the folder of a stage, in which --arm one selects"):
        stage.find_stage("one")
    run.config.write_text(
        json.dumps(to_dict(Experiment("x", "toy", {"one": chain})) | {"colour": 1})
    )
    with pytest.raises(UserError, match=r"config\.json: Experiment has no field colour"):
        run.find_stage()
