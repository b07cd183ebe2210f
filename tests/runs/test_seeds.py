"""Seeds trained side by side in processes, against the same seeds one after another."""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import SimpleNamespace

import fake_workers
import numpy as np
import pytest
from etils import epath
from paths import ROOT
from rich.console import Console
from tiny_run import command, launch

from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.errors import UserError
from codellama_jax.runs import seeds
from codellama_jax.runs.training import Training
from codellama_jax.sharding.hosts import Stopped
from codellama_jax.system import locks
from codellama_jax.training.metrics import read_metrics

TWO = ("--seeds", "2")
# A class of the experiment's own file, which a process has to read before it knows the class.
OWN_PROBE = """
plain = experiment

@dataclasses.dataclass(frozen=True)
class Files(Probe, name="files"):
    def measure(self, subject):
        return len(subject.files)

def experiment(scale="toy"):
    return dataclasses.replace(plain(scale), probes={"files": Files(stages="last")})
"""


@pytest.fixture(scope="module")
def one_process(place):
    with (place / "tiny.py").open("a") as file:
        file.write(OWN_PROBE)
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
    probes = place / "two" / "main@1" / "long" / "probes.json"
    assert json.loads(probes.read_text())["files"]


@pytest.mark.slow
def test_a_resumed_run_counts_the_documents_of_every_process(place, one_process):
    half = place / "half"
    shutil.copytree(one_process, half)
    shutil.rmtree(half / "main@1")
    (half / "corpus.json").unlink()
    code, _, errors = launch(place, "half", *TWO, "--processes", "2")
    assert code == 0, errors
    assert (half / "corpus.json").read_text() == (one_process / "corpus.json").read_text()


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


def side_by_side(monkeypatch, worker, seeds_of=2):
    """Runs two processes that call `worker` in the place of training."""
    monkeypatch.setattr(seeds, "_train_seeds", worker)
    seeds.train_side_by_side(SimpleNamespace(seeds=seeds_of), None, SimpleNamespace(processes=2))


def test_the_signal_that_killed_a_process_is_named_not_the_one_that_ended_the_others(monkeypatch):
    with pytest.raises(UserError, match="killed by signal 9;"):
        side_by_side(monkeypatch, fake_workers.killed)


def test_a_signal_to_one_process_stops_the_run(monkeypatch):
    with pytest.raises(Stopped) as stop:
        side_by_side(monkeypatch, fake_workers.stopped)
    assert stop.value.args == (signal.SIGTERM,)


def test_a_closed_pipe_ends_the_run(monkeypatch):
    with pytest.raises(SystemExit) as end:
        side_by_side(monkeypatch, fake_workers.without_reader)
    assert end.value.code == 141


def test_an_error_of_all_processes_is_printed_once(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        side_by_side(monkeypatch, fake_workers.without_space)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: No space left on device\n"


def test_ctrl_c_of_the_terminal_does_not_end_a_process_that_starts(monkeypatch):
    side_by_side(monkeypatch, fake_workers.interruptible)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_that_cannot_start_is_reported_and_the_others_end(monkeypatch):
    start = SpawnProcess.start

    def only_once(process):
        if multiprocessing.active_children():
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", only_once)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        side_by_side(monkeypatch, fake_workers.killed)
    assert not multiprocessing.active_children()


def test_an_experiment_that_cannot_be_sent_is_refused():
    with pytest.raises(UserError, match=r"--processes is 2: .*at the top of the experiment file"):
        seeds._pickled(SimpleNamespace(seeds=2, size=lambda: 1), 2)


def test_a_process_ends_with_a_parent_that_died_before():
    program = """
import multiprocessing, os, signal
import fake_workers
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=fake_workers.orphan).start()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = [str(ROOT), str(Path(fake_workers.__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    # Returns when the last process that has the pipe open has ended, not the first one.
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert run.returncode == -signal.SIGKILL
    assert (run.stdout, run.stderr) == ("", "")


def test_a_process_draws_no_bar_and_leaves_ctrl_c_to_the_first(monkeypatch):
    parent = SimpleNamespace(join=threading.Event().wait)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    before = signal.getsignal(signal.SIGINT)
    try:
        seeds._prepare_process([])
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert not Console().is_terminal
    finally:
        signal.signal(signal.SIGINT, before)


class _Recorded(Training):
    """A run whose stages only record that they ran; each is its own identity."""

    def __init__(self, folder: RunFolder, after) -> None:
        self.folder, self.after, self.ran = folder, after, []
        self._trained = {}

    def _prepared(self, stage):
        return None, stage.name

    def run(self, stage):
        self.ran.append(stage.name)
        self.after(stage)


def test_a_process_runs_what_no_other_has_claimed_and_each_stage_after_the_one_before(tmp_path):
    folder = RunFolder(epath.Path(tmp_path))
    first = SimpleNamespace(name="first", before=None)
    second = SimpleNamespace(name="second", before=first)
    other = SimpleNamespace(name="other", before=None)
    with contextlib.ExitStack() as by_another_process:
        by_another_process.enter_context(locks.claimed(folder.claim("first")))
        # The other process ends while `other` runs here.
        training = _Recorded(folder, lambda stage: by_another_process.close())
        training.run_unclaimed([first, second, other])
    assert training.ran == ["other", "first", "second"]
    assert not list(tmp_path.iterdir())


def test_the_last_seed_of_the_others_is_helped_with_first():
    stages = [SimpleNamespace(number=n, name=name) for n in range(4) for name in "ab"]
    helped = [(stage.number, stage.name) for stage in seeds._of_others(stages, (0, 2))]
    assert helped == [(3, "a"), (3, "b"), (1, "a"), (1, "b")]


@pytest.mark.parametrize(
    ("numbers", "order"),
    [((0, 2, 4), ["0a", "0b", "4a", "2a", "2b", "4b"]), ((1, 3), ["1a", "1b", "3a", "3b"])],
)
def test_the_first_arm_of_a_surplus_seed_is_trained_before_another_seed(numbers, order):
    stages = [SimpleNamespace(number=n, arm=arm) for n in numbers for arm in "ab"]
    early = seeds._first_arm_early(stages, seeds=5, processes=2)
    assert [f"{stage.number}{stage.arm}" for stage in early] == order


def test_seeds_without_a_surplus_stay_in_order():
    stages = [SimpleNamespace(number=n, arm=arm) for n in (0, 2) for arm in "ab"]
    assert seeds._first_arm_early(stages, seeds=4, processes=2) == stages
    assert seeds._first_arm_early(stages[:2], seeds=1, processes=2) == stages[:2]


def test_a_file_system_without_locks_can_claim_nothing(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path)
    assert locks.can_claim(folder)

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    assert not locks.can_claim(folder)


def test_an_error_that_may_pass_is_not_a_file_system_without_locks(tmp_path, monkeypatch):
    """A process that took it for one would train its seeds beside one that helps with them."""

    def refuse(descriptor, operation):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No space left"):
        locks.can_claim(epath.Path(tmp_path))
