"""Death of a host: which heartbeat is too old, and a host killed in real processes on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from paths import ROOT

from codellama_jax.sharding import peers


class Ended(Exception):
    pass


@pytest.fixture
def watch(monkeypatch):
    """The watch of host 1 of 3, which raises in place of ending the process."""

    def end(self, host):
        raise Ended(self.message(host))

    monkeypatch.setattr(peers.Watch, "end", end)
    return peers.Watch(client=None, number=1, count=3)


def beats(*values: int | str) -> list[tuple[str, str]]:
    hosts = range(len(values))
    return [(f"{peers.FOLDER}{i}", json.dumps({"name": f"h{i}", "beat": values[i]})) for i in hosts]


def test_a_host_that_is_silent_for_too_long_is_named(watch):
    watch.last_good = lambda: "runs/x/step_7"
    for now in range(0, 300, 2):  # host 2 never starts to beat again, this one never does
        watch.judge(beats(now, 0, now), now)
    with pytest.raises(Ended) as ended:
        for now in range(300, 400, 2):
            watch.judge(beats(now, 0, 298), now)
            last = now
    assert 300 + peers.SILENT_SECONDS - 6 < last < 300 + peers.SILENT_SECONDS
    line = str(ended.value)
    assert line.startswith("error: host 2 (h2) has died or stopped with an error; ")
    assert "the last good checkpoint: runs/x/step_7; start the same command" in line
    assert line.count("\n") == 1


def test_a_host_without_any_heartbeat_is_dead_after_a_while(watch):
    with pytest.raises(Ended, match="host 2 has died"):
        for now in range(0, 100, 2):
            watch.judge(beats(now, 0), now)


def test_a_host_that_has_finished_is_not_dead(watch):
    for now in range(0, 500, 2):
        watch.judge(beats(now, 0, "ended"), now)


def test_a_host_that_reports_an_error_leaves_the_others_time_for_theirs(watch):
    watch.judge(beats(0, 0, 0), 0)
    for now in (2, 4, 2 + peers.FAILED_SECONDS):
        watch.judge(beats(now, 0, "failed"), now)
    with pytest.raises(Ended, match="host 2"):
        watch.judge(beats(50, 0, "failed"), 3 + peers.FAILED_SECONDS)


def test_the_clients_log_is_left_out_and_nothing_else(tmp_path):
    """Records of JAX 0.10 and 0.12, of one line and of several."""
    log = b"""ours
W1129 14:23 preemption_sync_manager.cc:147] Failed: UNAVAILABLE: Stream removed
Additional GRPC error information from remote target coordination_service
:UNAVAILABLE:Stream removed (Socket closed)
=== Source Location Trace: ===
external/xla+/xla/util.h:302

W1129 14:23 other.cc:1] kept
=== Source Location Trace: ===
also ours
E1129 14:23 coordination_service_agent.cc:288] Polled an error
ours again
"""
    reader, writer = os.pipe()
    os.write(writer, log)
    os.close(writer)
    with open(tmp_path / "kept", "wb") as kept:
        peers._pump(reader, kept.fileno(), threading.Event())
    lines = (tmp_path / "kept").read_text().splitlines()
    trace = "=== Source Location Trace: ==="
    assert lines == ["ours", "W1129 14:23 other.cc:1] kept", trace, "also ours", "ours again"]


PROGRAM = """
import os, sys
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
from codellama_jax.command_line import run_command
from codellama_jax.sharding import peers
from codellama_jax.sharding.hosts import start_distributed
peers.BEAT_SECONDS, peers.SUSPECT_SECONDS, peers.SILENT_SECONDS = 0.2, 2.0, 30.0

def main():
    start_distributed()
    with peers.ending_with_peers():
        peers.name_last_good(lambda: "runs/x/step_7")
        while True:
            multihost_utils.process_allgather(jnp.ones(3))
            print("up", flush=True)

run_command(main)
"""


@pytest.mark.parametrize("dead", [0, 1])
def test_the_death_of_a_host_is_one_line_with_its_own_exit_code(dead):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": str(ROOT),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**environment, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for host in hosts:
        while "up" not in host.stdout.readline():
            assert host.poll() is None, host.stderr.read()
    hosts[dead].send_signal(signal.SIGKILL)
    left = hosts[1 - dead]
    errors = left.communicate(timeout=60)[1]
    hosts[dead].communicate()
    assert left.returncode == peers.PEER_DIED, errors
    assert errors.startswith(f"error: host {dead} ({socket.gethostname()}) has died"), errors
    assert "the last good checkpoint: runs/x/step_7" in errors
    assert errors.count("\n") == 1
