"""A pool of sandboxed workers, and the test that they isolate."""

from __future__ import annotations

import itertools
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from codellama_jax.config import UserError
from codellama_jax.evaluation.execute import languages
from codellama_jax.evaluation.execute.verdicts import LANGUAGES, Program, Verdict
from codellama_jax.evaluation.sandbox import slot

_FIRST_UID, _UIDS = 60578, 600  # a range that systems leave unused
_START = "import sys; sys.path.insert(0, sys.argv[1]); from codellama_jax.evaluation.sandbox import slot; \
slot.main(int(sys.argv[2]), sys.argv[3])"
_REQUIRED = ("namespaces", "network", "root", "rlimits", "seccomp")
_PROBE = """
import ctypes, json, os, resource, socket

def refused(action):
    try:
        action()
    except OSError:
        return True
    return False

layers = {
    "namespaces": os.getpid() < 10,
    "network": refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))),
    "root": not os.path.exists("/home") and refused(lambda: open("/x", "w")) and refused(lambda: open("/usr/x", "w")),
    "rlimits": resource.getrlimit(resource.RLIMIT_AS)[0] > 0,
    "seccomp": ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) == 2 and refused(lambda: socket.socket(40, 1)) and refused(os.fork),
}
print(json.dumps(layers))
"""


class Executor:
    """Workers that run programs which a model wrote.

    `mode` is how Python programs with a `test` run: isolated (tests in a process of their own) or compatible (one program, as the public
    harnesses do). Raises UserError where the machine cannot isolate, unless `allow_unsafe`. `jars` are put on Java's class path.
    """

    def __init__(
        self,
        workers: int | None = None,
        mode: str = "isolated",
        allow_unsafe: bool = False,
        memory_mb: int = 1024,
        processes: int = 64,
        tmp_mb: int = 256,
        jars: tuple[str, ...] = (),
    ):
        if mode not in ("isolated", "compatible"):
            raise UserError(f"mode is isolated or compatible, not {mode}")
        if missing := [jar for jar in jars if not os.path.isfile(jar)]:
            raise UserError(f"no file {missing[0]}")
        self.mode, self._jars = mode, tuple(os.path.abspath(jar) for jar in jars)
        binds = tuple(path for path in dict.fromkeys([sys.base_prefix, *languages.places(self._jars)]) if not path.startswith("/usr"))
        self._config = slot.Config(None, memory_mb, processes, tmp_mb, binds)
        workers = workers or len(os.sched_getaffinity(0))
        self._slots = [_Slot(self._config._replace(uid=_uid(number))) for number in range(workers)]
        try:
            self.layers = self._probe(allow_unsafe)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every worker; returns when nothing of them is left."""
        for worker in self._slots:
            worker.close()

    def run(self, programs: Iterable[Program]) -> Iterator[tuple[int, Verdict]]:
        """Yields (position, verdict) as programs finish; takes the next program when a worker is free. Raises UserError for a missing tool."""
        waiting, idle = enumerate(programs), list(self._slots)
        with selectors.DefaultSelector() as selector:
            while True:
                for worker, (index, program) in zip(idle, itertools.islice(waiting, len(idle))):
                    worker.start(program, *self._job(program))
                    selector.register(worker.socket, selectors.EVENT_READ, (worker, index))
                if not selector.get_map():
                    return
                idle = []
                for key, _ in selector.select():
                    worker, index = key.data
                    selector.unregister(key.fileobj)
                    idle.append(worker)
                    yield index, worker.finish()

    def _job(self, program: Program) -> tuple[bytes, float, dict]:
        """Returns how the program is judged, after how many seconds it is ended at the latest, and what the judge reads."""
        if program.language not in LANGUAGES:
            raise UserError(f"{program.task_id}: no language {program.language}; there are {', '.join(LANGUAGES)}")
        if self.mode == "isolated" and program.language == "python" and program.test:
            return slot.ISOLATED, program.timeout, {k: getattr(program, k) for k in ("candidate", "test", "entry_point", "prompt")}
        languages.require(program.language)
        job = languages.job(program, self._config.memory_mb, self._jars)
        return slot.PYTHON if program.language == "python" else slot.TOOLCHAIN, program.timeout + sum(limit for _, limit in job["build"]) + 1.0, job

    def _probe(self, allow_unsafe: bool) -> dict[str, bool]:
        """Asks each worker what it has set up, and a program in the first one what holds."""
        layers = [worker.layers() for worker in self._slots][0]
        program = Program("probe", "python", _PROBE, timeout=10.0, rule="output")
        self._slots[0].start(program, *self._job(program))
        verdict = self._slots[0].finish()
        seen = json.loads(verdict.stdout) if verdict.status == "passed" else {}
        layers = {name: layers.get(name, True) and seen.get(name, name not in _REQUIRED) for name in (*layers, "network", "root")}
        if not allow_unsafe and not all(layers[name] for name in _REQUIRED):
            off = ", ".join(name for name in _REQUIRED if not layers[name])
            raise UserError(
                f"programs that a model wrote cannot be isolated on this machine ({off}): run as root, "
                "or let users make namespaces (sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0), "
                "or accept the danger with --allow-unsafe"
            )
        return layers


def _uid(number: int) -> int | None:
    """Returns an unused uid for the candidates of a worker; the next one is its judge's. None for an ordinary user."""
    return None if os.geteuid() else _FIRST_UID + (os.getpid() * 16 + 2 * number) % _UIDS


class _Slot:
    """The executor's end of one worker."""

    def __init__(self, config: slot.Config):
        self._config = config
        self._launch()

    def _launch(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).resolve().parents[3])
        command = [sys.executable, "-I", "-S", "-B", "-c", _START, root, str(theirs.fileno()), json.dumps(self._config)]
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={}, start_new_session=True, **quiet)
        theirs.close()

    def layers(self) -> dict[str, bool]:
        return json.loads(self.socket.recv(1 << 16) or "{}")

    def start(self, program: Program, mode: bytes, seconds: float, job: dict) -> None:
        self._file = os.memfd_create("job", os.MFD_CLOEXEC)
        with open(self._file, "wb", closefd=False) as file:
            file.write(json.dumps(job).encode())
        self._program, self._seconds, self._began = program, seconds, time.monotonic()
        socket.send_fds(self.socket, [slot.HEADER.pack(mode, seconds)], [self._file])

    def finish(self) -> Verdict:
        """Waits for the verdict; starts the worker anew if it died."""
        end = self.socket.recv(1)
        seconds = time.monotonic() - self._began
        with open(self._file, "rb") as file:
            file.seek(0)
            text = file.read()
        if end == slot.TIMEOUT:
            return Verdict(self._program.task_id, "timeout", seconds=seconds)
        if end == slot.DONE:
            return Verdict(self._program.task_id, seconds=seconds, **json.loads(text))
        if not end:
            self.close()
            self._launch()
            self.layers()
        return Verdict(self._program.task_id, "error", "the sandbox failed to run it", seconds)

    def close(self) -> None:
        self.socket.close()
        self._process.wait()
