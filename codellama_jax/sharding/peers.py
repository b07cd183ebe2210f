"""Ends this process with one line, within a minute, after another host of the command has died.

Every host writes heartbeats to the key-value store of JAX's coordination service, which runs on
host 0, and reads the heartbeats of the others. When host 0 itself dies, the client of the service
aborts the process at once. A handler of SIGABRT then prints the line in place of the client's stack
trace.
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

# The exit code, EX_TEMPFAIL of sysexits.h: the same command may succeed later.
PEER_DIED = 75
FOLDER = "codellama_jax/hosts/"  # prefix of the keys in the store
BEAT_SECONDS = 2.0  # time between two heartbeats
# A host counts as dead after this time without a heartbeat. It is long, because a native call may
# hold Python's lock and delay heartbeats, and shorter than JAX's own limit of 100 seconds.
SILENT_SECONDS = 60.0
# The same limit after a collective of this host has failed, which a dead peer makes likely.
SUSPECT_SECONDS = 12.0
# Another host has reported an error: the time in which this host may raise the same error itself.
FAILED_SECONDS = 10.0
NAME_MILLISECONDS = 10_000  # time in which host 0 must have written its name
# The line that the service's client logs before it aborts.
FATAL = b"JAX distributed service detected fatal errors"
# Other records that the client logs when the service is gone.
CLIENT_LOG = re.compile(rb"coordination_service|preemption_sync_manager")
# The further lines of such a record: gRPC's own error, and a source location from JAX 0.12 on.
CLIENT_LOG_CONTINUED = re.compile(
    rb"^(:[A-Z]+:|Additional GRPC error|=== Source Location Trace|external/xla|\. |\s*$)"
)


class Watch:
    """Writes this host's heartbeats and reads those of the others.

    `run`, in a thread, ends the process when another host is dead.

    Args:
      client: client of JAX's coordination service.
      number: index of this host.
      count: number of hosts.
    """

    def __init__(self, client: Any, number: int, count: int):
        self.client, self.number, self.count = client, number, count
        self.last_good: Callable[[], str] = str  # returns the name of the last good checkpoint
        self.silent_seconds = SILENT_SECONDS
        self.ended = threading.Event()
        self.stderr = sys.stderr
        self.names: dict[int, str] = {}
        self.beats: dict[int, tuple[Any, float]] = {}  # last heartbeat of a host, and when it came
        self.ending = threading.Lock()  # only one thread ends the process

    def publish(self, beat: int | str) -> None:
        """Writes this host's heartbeat: a growing number, or `ended` or `failed` at the end."""
        value = json.dumps({"name": socket.gethostname(), "beat": beat})
        self.client.key_value_set(f"{FOLDER}{self.number}", value, allow_overwrite=True)

    def run(self) -> None:
        """Writes and judges heartbeats until this host's part of the command ends."""
        beat = 0
        while not self.ended.wait(BEAT_SECONDS):
            beat += 1
            try:
                self.publish(beat)
                entries = self.client.key_value_dir_get(FOLDER)
            except Exception:
                # The service is gone: host 0 has died, unless this host is ending as well.
                if not self.ended.wait(BEAT_SECONDS):
                    self.end(0)
                return
            self.judge(entries, time.monotonic())

    def judge(self, entries: list[tuple[str, str]], now: float) -> None:
        """Ends the process if a host has sent no new heartbeat for too long.

        Args:
          entries: (key, JSON) of every host's heartbeat in the store.
          now: time in seconds.
        """
        for key, text in entries:
            host, value = int(key.rpartition("/")[2]), json.loads(text)
            self.names[host] = value["name"]
            # Only the change of a heartbeat counts, by this host's own clock: clocks of hosts
            # differ.
            if self.beats.get(host, (None, 0.0))[0] != value["beat"]:
                self.beats[host] = value["beat"], now
        for host in range(self.count):
            beat, since = self.beats.setdefault(host, (None, now))
            limit = FAILED_SECONDS if beat == "failed" else self.silent_seconds
            if host != self.number and beat != "ended" and now - since > limit:
                self.end(host)

    def message(self, host: int) -> str:
        """Returns the line that reports a dead host."""
        name = f" ({self.names[host]})" if host in self.names else ""
        last_good = self.last_good()
        saved = f"the last good checkpoint: {last_good}; " if last_good else ""
        return (
            f"error: host {host}{name} has died or stopped with an error; {saved}"
            f"start the same command on all hosts to resume: {shlex.join(sys.argv)}\n"
        )

    def end(self, host: int) -> None:
        """Prints the line of a dead host and ends the process, whatever its threads wait for."""
        with self.ending:
            with contextlib.suppress(Exception):
                self.stderr.write(self.message(host))
                self.stderr.flush()
            if self.number == 0 and host:
                # The store is on this host: the others need time to read who died first.
                time.sleep(2 * BEAT_SECONDS)
            os._exit(PEER_DIED)


_current: Watch | None = None


def name_last_good(last_good: Callable[[], str]) -> None:
    """Adds the last good checkpoint, which `last_good` returns, to the line of a dead host."""
    if _current:
        _current.last_good = last_good


@contextlib.contextmanager
def ending_with_peers() -> Iterator[None]:
    """Ends this process with exit code PEER_DIED if another host dies within the block."""
    global _current
    if jax.process_count() == 1:
        yield
        return
    client: Any = distributed.global_state.client
    _current = watch = Watch(client, jax.process_index(), jax.process_count())
    with _without_client_log(watch):
        # Written at once, so that the others know this host's name even if it dies early. If the
        # service is already gone, `run` ends the process.
        with contextlib.suppress(Exception):
            watch.publish(0)
            # The store ends with host 0, whose name could not be read from it afterwards.
            first = client.blocking_key_value_get(f"{FOLDER}0", NAME_MILLISECONDS)
            watch.names[0] = json.loads(first)["name"]
        threading.Thread(target=watch.run, name="peers", daemon=True).start()
        try:
            yield
        except (Stopped, SystemExit):
            _leave(watch, "ended")
            raise
        except (UserError, KeyboardInterrupt):
            _leave(watch, "failed")
            exit_within()  # at exit JAX would wait for the other hosts
            raise
        except Exception:
            # A collective fails as soon as the sockets of a dead peer close. Waiting shows which
            # host is silent; if none is, the error is this host's.
            watch.silent_seconds = SUSPECT_SECONDS
            time.sleep(SUSPECT_SECONDS + 3 * BEAT_SECONDS)
            _leave(watch, "failed")
            exit_within(code=1)
            raise
        _leave(watch, "ended")


def _leave(watch: Watch, beat: str) -> None:
    """Stops `watch` and writes its last heartbeat."""
    watch.ended.set()
    with contextlib.suppress(Exception):
        watch.publish(beat)


@contextlib.contextmanager
def _without_client_log(watch: Watch) -> Iterator[None]:
    """Keeps the log of the service's client off stderr, and prints `watch`'s line if it aborts.

    The output of native code passes through a pipe, in which lines can be left out. Python's own
    stderr bypasses the pipe.
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
    """Copies lines from a pipe to a file, without the client's log; sets `fatal` at its abort.

    `reader` and `real` are file descriptors.
    """
    is_left_out = False
    with open(reader, "rb") as lines:
        for line in lines:
            if FATAL in line:
                fatal.set()
            is_continued = is_left_out and CLIENT_LOG_CONTINUED.search(line)
            is_left_out = bool(CLIENT_LOG.search(line) or is_continued)
            if not fatal.is_set() and not is_left_out:
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
        libc.signal(signal.SIGABRT, None)  # None is SIG_DFL: the process then aborts as usual

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)
