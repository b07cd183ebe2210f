"""Seeds trained side by side in processes, against the same seeds one after another."""

import json
import os
import signal
import time

import numpy as np
import pytest
from tiny_run import command, launch

from codellama_jax.errors import UserError
from codellama_jax.runs import seeds
from codellama_jax.training.metrics import read_metrics

TWO = ("--seeds", "2")


@pytest.fixture(scope="module")
def one_process(place):
    code, _, errors = launch(place, "one", *TWO)
    assert code == 0, errors
    return place / "one"


def test_two_processes_train_what_one_trains(place, one_process):
    code, output, errors = launch(place, "two", *TWO, "--processes", "2")
    assert code == 0, errors
    assert "main@1/long: done before, skipped" in output
    for arm in ("main", "main@1"):
        logs = [
            read_metrics(place / out / arm / "long" / "metrics.jsonl") for out in ("one", "two")
        ]
        by_step = [[line["loss"] for line in log if "loss" in line] for log in logs]
        assert len(by_step[0]) == 4
        # A matmul on one thread adds in another order than one on two.
        assert by_step[0] == pytest.approx(by_step[1], abs=1e-5)
    counts = [json.loads((place / out / "corpus.json").read_text()) for out in ("one", "two")]
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_a_stopped_run_saves_every_seed_and_goes_on(place, one_process):
    process = command(place, "stopped", *TWO, "--processes", "2", "--long.steps", "4000")
    logs = [place / "stopped" / arm / "long" / "metrics.jsonl" for arm in ("main", "main@1")]
    until = time.monotonic() + 120
    while not all(path.exists() and path.stat().st_size for path in logs):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.count("\n") == 1 and "run the same command again" in errors
    for path in logs:
        assert list((path.parent / "checkpoints").glob("step_*"))


@pytest.mark.slow
def test_a_killed_process_is_named(place):
    process = command(place, "killed", *TWO, "--processes", "2", "--long.steps", "4000")
    log = place / "killed" / "main" / "long" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        children = [int(number) for number in file.read().split()]
    os.kill(children[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "was killed by signal 9" in errors and "fewer --processes" in errors


def test_a_mistake_in_a_process_is_printed_once(place):
    code, _, errors = launch(place, "bad", *TWO, "--processes", "2", "--long.init", "run:nowhere")
    assert code == 2
    assert errors.count("\n") == 1


def test_an_accelerator_is_refused(monkeypatch):
    monkeypatch.setattr(seeds.jax, "default_backend", lambda: "gpu")
    seeds.check_processes(1)
    with pytest.raises(UserError, match=r"--processes is 2: .*gpu.*leave it out"):
        seeds.check_processes(2)


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 0, 5, 7, 9}, raising=False)
    assert seeds._cores(2) == [[0, 3], [5, 7]]
    assert seeds._cores(6) == [[0, 3, 5, 7, 9]] * 6
    assert np.unique(np.concatenate(seeds._cores(5))).size == 5
