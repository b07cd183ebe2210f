"""Ends this process with one line, and within a minute, after another host of the command has died.

Every host writes a heartbeat to JAX's coordination service, which host 0 runs, and reads those of
the others. When host 0 itself dies, the service's client aborts the process at once: a handler of
SIGABRT prints the line in place of the client's stack.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed  # JAX has no public name for its key-value store

from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import Stopped
from codellama_jax.system.exits import exit_within

PEER_DIED = 75  # the exit code; EX_TEMPFAIL of sysexits.h: the same command may succeed later
FOLDER = "codellama_jax/hosts/"  # of the keys in the store
BEAT_SECONDS = 2.0
# A host counts as dead after this time without a heartbeat. It is long because a native call may
# keep Python's lock, and shorter than JAX's own 100 seconds.
SILENT_SECONDS = 60.0
SUSPECT_SECONDS = 12.0  # the same, once a collective of this host has failed
FAILED_SECONDS = 10.0  # that this host gets to raise the error that another host has reported
FATAL = b"JAX distributed service detected fatal errors"  # of the client, before it aborts
CLIENT_LOG = re.compile(  # other lines of the client's log about a service that has gone
    rb"coordination_service|preemption_sync_manager|^:UNKNOWN:Error received from peer"
)


class Watch:
    """Heartbeats of this host and of the others; `run` in a thread ends the process."""

    def __init__(self, client: Any, number: int, count: int):
        self.client, self.number, self.count = client, number, count
        self.last_good: Callable[[], str] = str
        self.silent_seconds = SILENT_SECONDS
        self.ended = threading.Event()
        self.stderr = sys.stderr
        self.names: dict[int, str] = {}
        self.beats: dict[int, tuple[Any, float]] = {}  # the last heartbeat and when it came
        self.ending = threading.Lock()

    def publish(self, beat: int | str) -> None:
        """Writes this host's heartbeat: a number that grows, `ended` or `failed`."""
        value = json.dumps({"name": socket.gethostname(), "beat": beat})
        self.client.key_value_set(f"{FOLDER}{self.number}", value, allow_overwrite=True)

    def run(self) -> None:
        beat = 0
        while not self.ended.wait(BEAT_SECONDS):
            beat += 1
            try:
                self.publish(beat)
                found = self.client.key_value_dir_get(FOLDER)
            except Exception:  # of the service, which ends with host 0
                if not self.ended.wait(BEAT_SECONDS):
                    self.end(0)
                return
            self.judge(found, time.monotonic())

    def judge(self, found: list[tuple[str, str]], now: float) -> None:
        """Ends the process if a heartbeat that was read is too old."""
        for key, text in found:
            host, value = int(key.rpartition("/")[2]), json.loads(text)
            self.names[host] = value["name"]
            if self.beats.get(host, (None, 0.0))[0] != value["beat"]:
                self.beats[host] = value["beat"], now
        for host in range(self.count):
            beat, since = self.beats.setdefault(host, (None, now))
            limit = FAILED_SECONDS if beat == "failed" else self.silent_seconds
            if host != self.number and beat != "ended" and now - since > limit:
                self.end(host)

    def message(self, host: int) -> str:
        name = f" ({self.names[host]})" if host in self.names else ""
        last_good = self.last_good()
        saved = f"the last good checkpoint: {last_good}; " if last_good else ""
        return (
            f"error: host {host}{name} has died or stopped with an error of its own; {saved}"
            f"start the same command on all hosts to resume: {shlex.join(sys.argv)}\n"
        )

    def end(self, host: int) -> None:
        """Prints one line and ends the process, whatever its threads wait for."""
        with self.ending:
            with contextlib.suppress(Exception):
                self.stderr.write(self.message(host))
                self.stderr.flush()
            if self.number == 0 and host:
                # The other hosts read this host's store: they shall see who died first.
                time.sleep(2 * BEAT_SECONDS)
            os._exit(PEER_DIED)


_current: Watch | None = None


def name_last_good(last_good: Callable[[], str]) -> None:
    """Makes the line that reports a dead host name the last good checkpoint."""
    if _current:
        _current.last_good = last_good


@contextlib.contextmanager
def ending_with_peers() -> Iterator[None]:
    """Ends this process with PEER_DIED if another host of the command dies within the block."""
    global _current
    if jax.process_count() == 1:
        yield
        return
    client = distributed.global_state.client
    _current = watch = Watch(client, jax.process_index(), jax.process_count())
    with _without_client_log(watch):
        with contextlib.suppress(Exception):  # `run` ends the process if the service has gone
            watch.publish(0)  # at once: the others know this host's name even if it dies early
        threading.Thread(target=watch.run, name="peers", daemon=True).start()
        try:
            yield
        except (Stopped, SystemExit):
            _leave(watch, "ended")
            raise
        except (UserError, KeyboardInterrupt):
            _leave(watch, "failed")
            exit_within()  # JAX would wait for the other hosts
            raise
        except Exception:
            # A collective fails as soon as a peer's sockets close: its silence shows which one.
            watch.silent_seconds = SUSPECT_SECONDS
            time.sleep(SUSPECT_SECONDS + 3 * BEAT_SECONDS)
            _leave(watch, "failed")
            exit_within(code=1)
            raise
        _leave(watch, "ended")


def _leave(watch: Watch, beat: str) -> None:
    watch.ended.set()
    with contextlib.suppress(Exception):
        watch.publish(beat)


@contextlib.contextmanager
def _without_client_log(watch: Watch) -> Iterator[None]:
    """Keeps the log of the service's client off stderr, and prints `watch`'s line if it aborts.

    What native code writes passes through a pipe; Python's own stderr does not.
    """
    real = os.dup(2)
    reader, writer = os.pipe()
    python_stderr = sys.stderr
    sys.stderr = watch.stderr = os.fdopen(os.dup(real), "w", buffering=1)
    os.dup2(writer, 2)
    os.close(writer)
    fatal = threading.Event()
    pump = threading.Thread(target=_pump, args=(reader, real, fatal), daemon=True)
    pump.start()
    try:
        with _at_abort(lambda: watch.end(0) if fatal.wait(1.0) else None):
            yield
    finally:
        sys.stderr.flush()
        sys.stderr = python_stderr
        os.dup2(real, 2)  # closes the pipe: the pump ends
        pump.join(1.0)


def _pump(reader: int, real: int, fatal: threading.Event) -> None:
    with open(reader, "rb") as lines:
        for line in lines:
            if FATAL in line:
                fatal.set()
            if not fatal.is_set() and not CLIENT_LOG.search(line):
                os.write(real, line)


@contextlib.contextmanager
def _at_abort(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action` when native code aborts the process, in the thread that aborts.

    Python's own signal handlers run too late for SIGABRT: after the C handler has returned.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]

    def handle(_: int) -> None:
        action()
        libc.signal(signal.SIGABRT, None)  # SIG_DFL: abort as ever

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)
