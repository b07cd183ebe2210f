"""A pool of sandboxed workers, and the test that they isolate."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.sandbox import languages
from codellama_jax.sandbox.inside import slot
from codellama_jax.sandbox.verdicts import LANGUAGES, WALL, Program, Verdict

_FIRST_UID, _UIDS = 60578, 600  # a range that systems leave unused
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from codellama_jax.sandbox.inside import slot; slot.main(int(sys.argv[2]), sys.argv[3])"
)
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
    "network": refused(
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
    ),
    "root": not os.path.exists("/etc/passwd")
    and refused(lambda: open("/x", "w"))
    and refused(lambda: open("/usr/x", "w")),
    "rlimits": resource.getrlimit(resource.RLIMIT_AS)[0] > 0,
    "seccomp": ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) == 2
    and refused(lambda: socket.socket(40, 1))
    and refused(os.fork),
}
print(json.dumps(layers))
"""
_KNOWN = """
import time
wall, processor, x = time.perf_counter(), time.process_time(), 0
for i in range(500_000):
    x = (x * 31 + i) % 1_000_003
print(time.process_time() - processor, time.perf_counter() - wall)
"""
_KNOWN_SECONDS = 0.05  # of that program on a current server processor with nothing else to do


class Executor:
    """Workers that run programs which a model wrote.

    Args:
        workers: programs at once; one for each core unless given.
        mode: how Python programs with a `test` run: isolated (tests in a separate process) or
            compatible (one program, as the public harnesses do).
        allow_unsafe: runs programs even where the machine cannot isolate them.
        memory_mb: limit of a program's memory.
        processes: limit of a program's processes.
        tmp_mb: limit of what a program writes.
        jars: archives on Java's class path.
        retry: whether a program that ran out of time runs once more, alone.

    Raises UserError where the machine cannot isolate, unless `allow_unsafe`.
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
        retry: bool = True,
    ):
        if mode not in ("isolated", "compatible"):
            raise UserError(f"mode is isolated or compatible, not {mode}")
        self.mode, self._jars = mode, tuple(os.path.abspath(jar) for jar in jars)
        for jar in self._jars:
            if not os.path.isfile(jar) or jar.startswith("/tmp/"):
                raise UserError(
                    f"no file {jar}"
                    if not os.path.isfile(jar)
                    else f"{jar} lies in /tmp, which programs have their own of"
                )
        binds = tuple(
            path
            for path in dict.fromkeys([sys.base_prefix, *languages.places(self._jars)])
            if path != "/usr" and not path.startswith("/usr/")
        )
        self._retry, self._retried, self._retried_finished = retry, 0, 0
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
        """Yields (position, verdict) as programs finish; a free worker takes the next program.

        A program that ran out of time runs once more when all others are done, with nothing of
        ours beside it; that verdict counts, and comes last.

        Raises UserError for an unknown language and for a missing tool.
        """
        late: list[tuple[int, Program]] = []
        with contextlib.closing(self._run(enumerate(programs), self._slots)) as verdicts:
            for index, program, verdict in verdicts:
                if verdict.status == "timeout" and self._retry:
                    late.append((index, program))
                else:
                    yield index, verdict
        for numbered in late:
            with contextlib.closing(self._run(iter([numbered]), self._slots[:1])) as verdicts:
                for index, _, verdict in verdicts:
                    self._retried += 1
                    self._retried_finished += verdict.status != "timeout"
                    yield index, verdict

    def _run(
        self, waiting: Iterator[tuple[int, Program]], workers: Sequence[_Slot]
    ) -> Generator[tuple[int, Program, Verdict], None, None]:
        """Yields (position, program, verdict) of each program once, as they finish."""
        idle = list(workers)
        with selectors.DefaultSelector() as selector:
            try:
                while True:
                    for worker, (index, program) in zip(idle, itertools.islice(waiting, len(idle))):
                        worker.start(program, *self._job(program))
                        data = (worker, index, program)
                        selector.register(worker.socket, selectors.EVENT_READ, data)
                    if not selector.get_map():
                        return
                    worker, index, program = selector.select()[0][0].data
                    selector.unregister(worker.socket)
                    idle = [worker]
                    yield index, program, worker.finish()
            finally:
                for key in selector.get_map().values():  # nobody waits for these any more
                    worker = key.data[0]
                    if worker.socket.fileno() >= 0:  # not closed
                        worker.restart()

    def machine(self) -> dict[str, Any]:
        """Returns how fast this machine runs a known program now, and what was retried.

        `speed` is relative to a current server processor: 0.5 takes twice as long. It counts wall
        time, so other work on the machine lowers it; `processor speed` counts processor time.
        """
        program = Program("speed", "python", _KNOWN, timeout=30.0, rule="output")
        [(_, _, verdict)] = self._run(iter([(0, program)]), self._slots[:1])
        seconds = [float(word) for word in verdict.stdout.split()]
        processor, wall = seconds if len(seconds) == 2 else (float("inf"), float("inf"))
        return {
            "speed": _KNOWN_SECONDS / wall,
            "processor speed": _KNOWN_SECONDS / processor,
            "retried": self._retried,
            "retried and finished": self._retried_finished,
        }

    def _job(self, program: Program) -> tuple[bytes, float, float, dict]:
        """Returns how the program is judged, its seconds of processor and wall time, and the
        judge's input.
        """
        if program.language not in LANGUAGES:
            raise UserError(
                f"{program.task_id}: no language {program.language}; there are "
                f"{', '.join(LANGUAGES)}"
            )
        if self.mode == "isolated" and program.language == "python" and program.test:
            job = {k: getattr(program, k) for k in ("candidate", "test", "entry_point", "prompt")}
            return slot.ISOLATED, program.timeout, program.timeout * WALL, job
        languages.require(program.language)
        job = languages.job(program, self._config.memory_mb, self._jars)
        mode = slot.PYTHON if program.language == "python" else slot.TOOLCHAIN
        builds = sum(limit for _, limit in job["build"])
        return mode, program.timeout, program.timeout * WALL + builds + 1.0, job

    def _probe(self, allow_unsafe: bool) -> dict[str, bool]:
        """Asks each worker what it has set up, and a program in the first one what holds."""
        layers = self._slots[0].layers
        program = Program("probe", "python", _PROBE, timeout=60.0, rule="output")
        self._slots[0].start(program, *self._job(program))
        verdict = self._slots[0].finish()
        seen = json.loads(verdict.stdout) if verdict.status == "passed" else {}
        layers = {
            name: layers.get(name, True) and seen.get(name, name not in _REQUIRED)
            for name in (*layers, "network", "root")
        }
        if not allow_unsafe and not all(layers[name] for name in _REQUIRED):
            off = ", ".join(name for name in _REQUIRED if not layers[name])
            raise UserError(
                f"programs that a model wrote cannot be isolated on this machine ({off}): run as "
                "root, "
                "or let users make namespaces (sysctl kernel.unprivileged_userns_clone=1 "
                "kernel.apparmor_restrict_unprivileged_userns=0), "
                "or accept the danger with --allow-unsafe"
            )
        return layers


def _uid(number: int) -> int | None:
    """Returns an unused uid for the candidates of a worker; the next one is its judge's.

    None for an ordinary user.
    """
    return None if os.geteuid() else _FIRST_UID + (os.getpid() * 16 + 2 * number) % _UIDS


class _Slot:
    """The executor's end of one worker."""

    def __init__(self, config: slot.Config):
        self._config = config
        self._file: Any = None  # open while a program runs
        self._launch()

    def _launch(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).resolve().parents[2])
        command = [
            sys.executable,
            "-I",
            "-S",
            "-B",
            "-c",
            _START,
            root,
            str(theirs.fileno()),
            json.dumps(self._config),
        ]
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env={}, start_new_session=True, **quiet
        )
        theirs.close()

    @functools.cached_property
    def layers(self) -> dict[str, bool]:
        """What the worker has set up. Raises UserError if that is nothing."""
        told = json.loads(self._heard() or '{"error": "its process ended"}')
        if "error" in told:
            raise UserError(
                "the sandbox cannot be set up on this machine (it needs Linux 5.12 or newer): "
                f"{told['error']}"
            )
        return told

    def start(self, program: Program, mode: bytes, seconds: float, wall: float, job: dict) -> None:
        """Hands a program to the worker; to a new one if it is dead."""
        if self._file:
            self._file.close()
        self._file = open(os.memfd_create("job", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115
        self._file.write(json.dumps(job).encode())
        self._file.flush()
        self._program, self._began = program, time.monotonic()
        try:
            self._send(slot.HEADER.pack(mode, seconds, wall))
        except BrokenPipeError:
            self.restart()
            self._send(slot.HEADER.pack(mode, seconds, wall))

    def _send(self, header: bytes) -> None:
        assert self.layers  # the worker's first message is read
        socket.send_fds(self.socket, [header], [self._file.fileno()])

    def finish(self) -> Verdict:
        """Waits for the verdict; starts the worker anew if it died."""
        end = self._heard()
        task, seconds = self._program.task_id, time.monotonic() - self._began
        with self._file as file:
            file.seek(0)
            said = file.read()
        if end == slot.DONE:
            return Verdict(task, seconds=seconds, **json.loads(said))
        if end == slot.TIMEOUT:
            return Verdict(task, "timeout", seconds=seconds)
        if not end:
            self.restart()  # somebody killed it
        return Verdict(task, "error", "the sandbox failed to run it", seconds)

    def _heard(self) -> bytes:
        """Returns the worker's next message, none if it is dead."""
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def restart(self) -> None:
        self.socket.close()
        self._process.wait()
        self.__dict__.pop("layers", None)
        self._launch()

    def close(self) -> None:
        self.socket.close()
        self._process.wait()
        if self._file:
            self._file.close()
