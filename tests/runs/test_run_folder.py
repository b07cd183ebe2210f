"""The folder of a run: another config, a damaged config, another writer, a fresh start."""

import dataclasses
import json

import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.config import CorpusConfig, Experiment, to_dict
from codellama_jax.errors import UserError
from codellama_jax.runs.commands import RunOptions
from codellama_jax.runs.experiment import run_experiment
from codellama_jax.runs.folder import check_folder, check_other_runs, opened_folder
from codellama_jax.system import locks
from codellama_jax.system.files import write_json

DAMAGE = {"empty": b"", "nul": b"\0" * 500, "half": b'{"name": "x", "arms": {"ma', "list": b"[]"}


def experiment(rate: float = 1e-2) -> Experiment:
    stage = toy.stage()
    optimizer = dataclasses.replace(stage.optimizer, peak_lr=rate)
    return Experiment(
        "x", "toy", {"main": {"code": dataclasses.replace(stage, optimizer=optimizer)}}
    )


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that was begun."""
    run = RunFolder(epath.Path(tmp_path) / "run")
    with opened_folder(experiment(), run, fresh=False):
        write_json(run.stage("main", "code").config, to_dict(experiment().arms["main"]["code"]))
    return run


def test_a_run_is_written_by_one_process(folder):
    with opened_folder(experiment(), folder, fresh=False):
        for fresh in (False, True):
            second = opened_folder(experiment(), folder, fresh)
            with pytest.raises(UserError, match="is being written by process"), second:
                pass
    assert [p.name for p in folder.path.parent.iterdir()] == ["run"]
    assert not (folder.path / locks.NAME).exists()


def test_a_fresh_run_sets_the_old_one_aside(folder):
    for number in (1, 2):
        with opened_folder(experiment(rate=number), folder, fresh=True):
            kept = RunFolder(folder.path.with_name(f"run.{number}"))
            assert kept.set_aside.exists()
            assert not (kept.path / locks.NAME).exists()
            assert (folder.path / locks.NAME).exists()


def test_another_number_of_files_is_refused_with_the_difference(folder):
    fewer = dataclasses.replace(experiment(), corpus=CorpusConfig(max_files=700))
    with pytest.raises(UserError, match=r"\(corpus\.max_files: 0 -> 700\): choose another --out"):
        check_folder(fewer, folder)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_config_is_written_again_if_the_stages_agree(folder, damage, capsys):
    config = folder.config
    config.write_bytes(DAMAGE[damage])
    with pytest.raises(UserError, match=r"main\.code\.optimizer\.peak_lr: 0\.01 -> 0\.5"):
        check_folder(experiment(rate=0.5), folder)
    with opened_folder(experiment(), folder, fresh=False):
        pass
    assert "config.json is damaged and is written again" in capsys.readouterr().err
    assert json.loads(config.read_text()) == to_dict(experiment())


def test_a_folder_in_the_place_of_the_config_is_one_line(folder):
    folder.config.unlink()
    folder.config.mkdir()
    opened = opened_folder(experiment(), folder, fresh=False)
    with pytest.raises(UserError, match=r"cannot write .*config\.json: Is a directory"), opened:
        pass


def test_a_run_in_the_place_of_the_folder_of_runs_is_one_line(folder, tmp_path):
    """No stage was found in it, and all were trained again without a word."""
    message = "--reuse is .*run, which is a run: name the folder that holds it and other runs"
    cache, out = str(tmp_path / "cache"), str(tmp_path / "out")
    choice = RunOptions("x", out=out, cache=cache, reuse=str(folder))
    with pytest.raises(UserError, match=message):
        run_experiment(experiment(), "a claim", None, choice)
    # The folder of runs, and one that the first run makes.
    for runs in (folder.path.parent, tmp_path / "none"):
        check_other_runs(str(runs))
