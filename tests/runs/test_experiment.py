"""An experiment from start to report: killed, stopped, resumed and moved to other hosts.

Through the command line, in real processes.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from tiny_run import command, launch, losses, parameters, same_bits

from codellama_jax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def undisturbed(place):
    code, output, errors = launch(place, "undisturbed", REPORT="1")
    assert code == 0, errors
    return output


def test_a_run_leaves_everything_behind(place, undisturbed):
    out = place / "undisturbed"
    for name in (
        "config.json",
        "corpus.json",
        "tokenizer.model",
        "report.html",
        "report.md",
        "main/code/done.json",
        "main/long/metrics.jsonl",
    ):
        assert (out / name).exists(), name
    assert list((out / "main" / "code" / "tensorboard").iterdir())
    assert sorted(losses(place, "undisturbed", "code")) == list(range(1, 9))
    first = [
        line["validation_loss"]
        for line in read_metrics(out / "main" / "code" / "metrics.jsonl")
        if "validation_loss" in line
    ]
    assert len(first) == 3
    assert first[-1] < first[0]


def ask(*args: str, text: str = "") -> tuple[int, str, str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "codellama_jax", *args]
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, input=text, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_the_model_can_be_asked(place, undisturbed):
    out = str(place / "undisturbed")
    code, output, errors = ask("complete", out, "def alpha", "--max-new-tokens", "8")
    assert code == 0, errors
    assert output.startswith("def alpha")
    code, output, errors = ask(
        "infill",
        out,
        "-",
        "--spm",
        "--max-new-tokens",
        "8",
        text="def <FILL_ME>(x):\n    return x\n",
    )
    assert code == 0, errors
    assert output.startswith("def ")
    assert output.endswith("(x):\n    return x\n")


@pytest.mark.parametrize(
    "args, text, message",
    [
        (["complete", "/nowhere", "x"], "", "there is no folder /nowhere"),
        (
            ["complete", "RUN", "x", "--stage", "later"],
            "",
            "has no main/later: it has main/code, main/long",
        ),
        (["complete", "RUN", "x", "--temprature", "1"], "", "did you mean --temperature?"),
        (
            ["complete", "RUN", "x", "--top-p", "2"],
            "",
            "--top-p is 2.0: it must be a number above 0 and at most 1",
        ),
        (["infill", "RUN", "/nowhere.py"], "", "no file /nowhere.py"),
        (["infill", "RUN", "/"], "", "/ is a folder"),
        (["infill", "RUN", "-"], "nothing to fill", "holds 0 marks <FILL_ME>"),
    ],
)
def test_a_mistaken_question_is_one_line(place, undisturbed, args, text, message):
    code, _, errors = ask(
        *[str(place / "undisturbed") if a == "RUN" else a for a in args], text=text
    )
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1


def test_a_second_start_skips_what_is_done(place, undisturbed):
    counts = (place / "undisturbed/corpus.json").read_bytes()
    code, output, _ = launch(place, "undisturbed")
    assert code == 0
    assert "main/code: done before, skipped" in output
    assert "main/long: done before, skipped" in output
    assert (place / "undisturbed/corpus.json").read_bytes() == counts


@pytest.mark.slow
def test_killed_twice_ends_bit_for_bit_the_same(place, undisturbed):
    assert (
        launch(place, "killed", AT="code:5", SIGNAL=str(signal.SIGKILL.value))[0] == -signal.SIGKILL
    )
    assert (
        launch(place, "killed", AT="long:2", SIGNAL=str(signal.SIGKILL.value))[0] == -signal.SIGKILL
    )
    code, _, errors = launch(place, "killed")
    assert code == 0, errors
    for stage, steps in (("code", 8), ("long", 4)):
        assert losses(place, "killed", stage) == losses(place, "undisturbed", stage)
        same_bits(
            parameters(place, "killed", stage, steps),
            parameters(place, "undisturbed", stage, steps),
        )


@pytest.mark.parametrize(
    "number, exit_code",
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGINT, 130)],
)
def test_a_stopped_run_saves_and_goes_on(place, undisturbed, number, exit_code):
    out = f"stopped{exit_code}"
    code, _, errors = launch(place, out, AT="code:4", SIGNAL=str(number.value))
    assert code == exit_code
    assert "same command" in errors
    assert errors.count("\n") == 1
    saved = max(
        int(p.name[5:]) for p in (place / out / "main" / "code" / "checkpoints").glob("step_*")
    )
    assert saved > 4
    if number == signal.SIGTERM:
        assert launch(place, out)[0] == 0
        same_bits(parameters(place, out, "long", 4), parameters(place, "undisturbed", "long", 4))


def test_a_changed_config_is_refused_with_the_difference(place, undisturbed):
    code, _, errors = launch(place, "undisturbed", "--code.optimizer.peak-lr", "0.5")
    assert code == 2
    assert "main.code.optimizer.peak_lr: 0.01 -> 0.5" in errors
    assert "--fresh" in errors


def test_weights_of_another_model_are_refused(place, undisturbed):
    code, _, errors = launch(
        place,
        "other",
        "--code.init",
        f"run:{place / 'undisturbed'}",
        "--code.model.d-ff",
        "96",
        "--long.model.d-ff",
        "96",
    )
    assert code == 2
    assert "holds another model: d_ff is 64 there and 96 here" in errors
    code, _, errors = launch(place, "other", "--long.model.d-ff", "96")
    assert code == 2
    assert "holds another model: d_ff is 64 there and 96 here" in errors
    assert not (place / "other").exists()


def test_a_stage_goes_on_from_another_run(place, undisturbed):
    """Its loss before the first step is the loss of the model it starts from."""
    code, _, errors = launch(
        place,
        "onward",
        "--code.init",
        f"run:{place / 'undisturbed' / 'main' / 'code'}",
        "--code.steps",
        "1",
    )
    assert code == 0, errors
    first, last = (
        read_metrics(place / out / "main/code/metrics.jsonl") for out in ("onward", "undisturbed")
    )
    assert first[0]["validation_loss"] == pytest.approx(last[-1]["validation_loss"], abs=1e-6)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(place, undisturbed):
    shutil.copytree(place / "undisturbed", place / "damaged")
    stage = place / "damaged" / "main" / "long"
    (stage / "done.json").unlink()
    for file in (stage / "checkpoints" / "step_4" / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 300:
            os.truncate(file, file.stat().st_size // 2)
    code, _, errors = launch(place, "damaged")
    assert code == 0, errors
    assert "step_4 is damaged, trying the one before it" in errors
    same_bits(parameters(place, "damaged", "long", 4), parameters(place, "undisturbed", "long", 4))


DAMAGED_STATE = {
    "config.json": b"",
    "corpus.json": b"\0" * 100,
    "tokenizer.model": b"half",
    "main/code/config.json": b"\0" * 100,
    "main/code/identity.txt": b"",
    "main/long/done.json": b'{"step"',
    "main/code/probes.json": b"[]",
    "main/long/identity.txt": b"\0" * 32,
}


def test_damaged_state_files_are_made_again(place, undisturbed):
    """As a power loss leaves them: empty, half, full of NUL characters."""
    run = place / "powerless"
    shutil.copytree(place / "undisturbed", run)
    for name, data in DAMAGED_STATE.items():
        (run / name).write_bytes(data)
    metrics = run / "main/long/metrics.jsonl"
    metrics.write_bytes(b"\0" * 50 + b"\n" + metrics.read_bytes() + b'{"step": 4, "lo')
    code, output, errors = launch(place, "powerless")
    assert code == 0, errors
    assert "main/code: done before, skipped" in output
    assert "main/long: resumes at step 4" in output
    assert "config.json is damaged and is written again" in errors
    assert "left out 1 damaged lines, the first is 1" in errors
    for name in DAMAGED_STATE:
        if not name.endswith("code/identity.txt"):  # of a stage that was not begun again
            assert (run / name).read_bytes() == (place / "undisturbed" / name).read_bytes(), name
    assert losses(place, "powerless", "long") == losses(place, "undisturbed", "long")


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_trains(place, undisturbed):
    stop = {"AT": "long:2", "SIGNAL": str(signal.SIGSTOP.value)}
    first = command(place, "twice", **stop)
    while "main/long: starts" not in first.stdout.readline():
        assert first.poll() is None, first.stderr.read()
    before = (place / "twice/main/code/metrics.jsonl").read_bytes()
    code, _, errors = launch(place, "twice")
    assert code == 2
    assert f"twice is being written by process {first.pid} on " in errors
    assert errors.count("\n") == 1
    assert (place / "twice/main/code/metrics.jsonl").read_bytes() == before
    first.kill()
    first.communicate()
    assert launch(place, "twice")[0] == 0
    assert losses(place, "twice", "long") == losses(place, "undisturbed", "long")


def test_a_nan_stops_the_run_and_names_the_culprits(place):
    code, _, errors = launch(
        place, "nan", "--code.optimizer.peak-lr", "10", "--code.optimizer.weight-decay", "100"
    )
    assert code == 2
    assert "main/code: loss" in errors
    assert "Try a lower rate (--code.optimizer.peak-lr, now 10) or a longer warm-up" in errors
    assert ".py" in errors.split("documents of the batch: ")[1]
    assert "last good checkpoint" in errors


def on_two_hosts(place: Path, out: str, **env: str) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_NUM_CPU_DEVICES": "4",
    }
    processes = [
        command(place, out, **hosts, JAX_PROCESS_ID=str(i), **(env if i else {})) for i in range(2)
    ]
    return [(p.communicate(timeout=300), p.returncode)[1] for p in processes]


@pytest.mark.slow
def test_two_hosts_and_one_see_the_same_run(place, undisturbed):
    """Stopped on two hosts and resumed on one, and the reverse; one host gets the signal."""
    stop = {"AT": "code:4", "SIGNAL": str(signal.SIGTERM.value)}
    assert on_two_hosts(place, "two_then_one", **stop) == [143, 143]
    code, _, errors = launch(place, "two_then_one", JAX_NUM_CPU_DEVICES="8")
    assert code == 0, errors
    assert launch(place, "one_then_two", JAX_NUM_CPU_DEVICES="8", **stop)[0] == 143
    assert on_two_hosts(place, "one_then_two") == [0, 0]
    for stage in ("code", "long"):
        expected = losses(place, "undisturbed", stage)
        for out in ("two_then_one", "one_then_two"):
            assert losses(place, out, stage) == pytest.approx(expected, abs=1e-5)
    cursors = [
        json.loads((place / o / "main/long/checkpoints/step_4/cursors/metadata").read_text())
        for o in ("undisturbed", "two_then_one", "one_then_two")
    ]
    assert cursors[0]["rows"] == cursors[1]["rows"] == cursors[2]["rows"]
