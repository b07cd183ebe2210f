"""Arms and seeds in real processes: equal stages train once, within a run and among runs."""

import json
import signal

import numpy as np
import pytest
from etils import epath
from tiny_run import launch, same_bits

from codellama_jax.checkpoints.folder import StageFolder, find_trained
from codellama_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow
EXPERIMENT = '''
"""Three arms of two seeds."""
import dataclasses
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.config import *
from codellama_jax.probes import Perplexity
from codellama_jax.report.findings import Difference, Finding, Panel, pairs

def experiment(scale="toy"):
    model = LlamaConfig(336, 32, 1, 4, 2, 8, 64, compute_dtype="float32", remat="none")
    data = DataConfig(64, 8, MixtureConfig(code=1.0), InfillingConfig(0.9), block_chars=150)
    code = Stage(model, data, OptimizerConfig(1e-2, 2), 6, "scratch",
                 eval_rows=8, eval_every=3, checkpoint_every=3, log_every=1)
    rotated = dataclasses.replace(model, rope_theta=5.0)
    theta = dataclasses.replace(code, init="previous", steps=0, model=rotated)
    more = dataclasses.replace(code, init="previous", steps=4)
    arms = {"one": {"code": code}, "theta": {"code": code, "theta": theta},
            "more": {"code": code, "more": more}}
    probes = {"perplexity": Perplexity((32,), stages="last")}
    corpus = CorpusConfig(code="SOURCES", validation_fraction=0.3)
    return Experiment("arms", scale, arms, TokenizerConfig(pieces=320), corpus,
                      probes=probes, seeds=2)

def finding(results):
    losses = {arm: [chain[-1].loss for chain in seeds] for arm, seeds in results.items()}
    curves = {arm: [chain[-1].curve for chain in seeds] for arm, seeds in results.items()}
    panel = Panel("tokens", "loss", curves)
    gain = pairs(losses["one"], losses["more"])
    gains = Difference("fewer steps minus more", "nats per token", gain)
    return Finding("Do more steps help?", ("arm", "loss"), [], [("Loss.", [panel])], [gains],
                   "few steps.")
'''


@pytest.fixture(scope="module")
def folder(place):
    """The folder of test_run's sources, with this experiment in its place."""
    (place / "tiny.py").write_text(EXPERIMENT.replace("SOURCES", str(place / "sources")))
    (place / "runs").mkdir()
    return place


@pytest.fixture(scope="module")
def first(folder):
    """The output of the first run, which was killed once and resumed."""
    assert (
        launch(folder, "runs/first", AT="more:2", SIGNAL=str(signal.SIGKILL.value))[0]
        == -signal.SIGKILL
    )
    (
        folder / "runs/first/theta/theta/done.json"
    ).unlink()  # as if killed between its checkpoint and its mark
    code, output, errors = launch(folder, "runs/first", REPORT="1")
    assert code == 0, errors
    return output


def arm_metrics(folder, stage: str) -> list[dict]:
    return read_metrics(StageFolder(epath.Path(folder) / "runs/first" / stage).trained().metrics)


def test_equal_stages_are_trained_once_and_seeds_apart(folder, first):
    for line in (
        "one/code: done before, skipped",
        "theta@1/code: equal to",
        "more@1/code: equal to",
    ):
        assert line in first
    run = folder / "runs/first"
    trained = {str(path.parent.relative_to(run)) for path in run.rglob("checkpoints")}
    assert trained == {
        stage for s in ("", "@1") for stage in (f"one{s}/code", f"theta{s}/theta", f"more{s}/more")
    }
    a, b = (arm_metrics(folder, f"one{s}/code") for s in ("", "@1"))
    a, b = ([line["loss"] for line in lines if "loss" in line] for lines in (a, b))
    assert len(a) == len(b) == 6
    assert not np.allclose(a, b)
    assert {path.parent.name for path in run.rglob("probes.json")} == {"code", "theta", "more"}
    # Only the last stage of an arm is probed.
    assert not (run / "more" / "code" / "probes.json").exists()


def test_no_steps_keep_the_parameters_under_another_model(folder, first):
    from orbax.checkpoint import StandardCheckpointer

    def read(stage: str, step: int) -> dict:
        path = folder / "runs/first" / stage / f"checkpoints/step_{step}/params"
        return StandardCheckpointer().restore(path)

    same_bits(read("one/code", 6), read("theta/theta", 0))
    (before, *_, after), theta = arm_metrics(folder, "one/code"), arm_metrics(folder, "theta/theta")
    assert {line["step"] for line in theta} == {0}
    assert theta[0]["validation_loss"] != pytest.approx(
        after["validation_loss"], abs=1e-6
    )  # another RoPE base
    assert theta[0]["validation_loss"] < before["validation_loss"]


def test_the_report_opens_with_the_finding(folder, first):
    text = (folder / "runs/first/report.md").read_text()
    assert (
        text.index("Do more steps help?")
        < text.index("Three arms of two seeds.")
        < text.index("Validation loss by arm")
    )
    by_seed = [
        arm_metrics(folder, f"one{s}/code")[-1]["validation_loss"]
        - arm_metrics(folder, f"more{s}/more")[-1]["validation_loss"]
        for s in ("", "@1")
    ]
    assert ", ".join(f"{value:+.3g}" for value in by_seed) in text
    assert (
        "All 2 seeds have 6 different stages" in text and "bigram" not in text
    )  # which was not asked
    assert {p.name for p in (folder / "runs/first/figures").iterdir()} == {
        "arms-0.png",
        "arms-validation.png",
    }


def test_other_runs_are_read_where_stages_are_equal(folder, first):
    runs = str(folder / "runs")
    code, output, errors = launch(
        folder, "runs/second", "--reuse", runs, "--more.steps", "2", "--seeds", "1"
    )
    assert code == 0, errors
    for stage in ("one/code", "theta/code", "theta/theta", "more/code"):
        assert f"{stage}: equal to" in output
    assert "more/more step 2/2" in output
    assert (
        json.loads((folder / "runs/second/one/code/done.json").read_text())["at"]
        == "../../../first/one/code"
    )
    trained_in, _ = find_trained(epath.Path(runs) / "second", "one")
    assert trained_in.path == epath.Path(runs) / "first/one/code"
    assert find_trained(epath.Path(runs) / "first", "more@1")[0].path.parts[-2:] == (
        "more@1",
        "more",
    )
    (folder / "runs/first").rename(folder / "elsewhere")
    code, output, errors = launch(
        folder, "runs/second", "--arm", "one", "--more.steps", "2", "--seeds", "1"
    )
    (folder / "elsewhere").rename(folder / "runs/first")
    assert code == 0, errors
    assert "one/code step 6/6" in output  # what it pointed to is gone
