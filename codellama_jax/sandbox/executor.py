"""A pool of sandboxed workers, and the probe that verifies that they isolate."""

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

_FIRST_UID, _UIDS = 60578, 600  # a range that Linux distributions leave unused
# Run by a bare interpreter (-I -S), which finds this package only through its first argument.
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from codellama_jax.sandbox.inside import slot; slot.main(int(sys.argv[2]), sys.argv[3])"
)
# Without one of these layers a program could reach the network, files or other processes.
_REQUIRED = ("namespaces", "network", "root", "rlimits", "seccomp")
# Runs as a candidate and prints which layers hold. 21 is PR_GET_SECCOMP of prctl(2), whose answer 2
# means that a filter is active. 40 is AF_VSOCK, a family outside of the network namespace.
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
# Measures the machine's speed: prints seconds of processor time and of wall time of a loop.
_SPEED_TEST = """
import time
wall, processor, x = time.perf_counter(), time.process_time(), 0
for i in range(500_000):
    x = (x * 31 + i) % 1_000_003
print(time.process_time() - processor, time.perf_counter() - wall)
"""
_SPEED_TEST_SECONDS = 0.05  # wall time of _SPEED_TEST on a current, idle server processor


class Executor:
    """Workers that run programs which a model wrote.

    Args:
        workers: how many programs run at once; one per core unless given.
        mode: how Python programs with a `test` run: isolated (tests in a separate process) or
            compatible (one program, as the public harnesses do).
        allow_unsafe: runs programs even if the machine cannot isolate them.
        memory_mb: limit of a program's memory, in MiB.
        processes: limit of a program's processes.
        tmp_mb: limit of the files that a program writes, in MiB.
        jars: archives on Java's class path.
        retry: whether a program that ran out of time runs once more, alone.

    Raises UserError if the machine cannot isolate programs, unless `allow_unsafe`.
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
            raise UserError(f"mode must be isolated or compatible, got {mode}")
        self.mode = mode
        self._jars = tuple(os.path.abspath(jar) for jar in jars)
        for jar in self._jars:
            _check_jar(jar)
        self._retry = retry
        self._retried = 0
        self._retried_finished = 0
        binds = _paths_outside_usr([sys.base_prefix, *languages.tool_paths(self._jars)])
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
        """Ends every worker; returns when none of their processes is left."""
        for worker in self._slots:
            worker.close()

    def run(self, programs: Iterable[Program]) -> Iterator[tuple[int, Verdict]]:
        """Yields (position, verdict) as programs finish; an idle worker takes the next program.

        A program that ran out of time runs once more after all others, with no other program
        beside it. Its second verdict counts and comes last.

        Raises UserError for an unknown language and for a missing tool.
        """
        late: list[tuple[int, Program]] = []
        # `closing` ends the generator as soon as the caller stops iterating: see `_run`.
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
                # The caller stopped early. A worker that still runs a program would send its
                # verdict to the next caller, so it is replaced.
                for key in selector.get_map().values():
                    worker = key.data[0]
                    is_open = worker.socket.fileno() >= 0
                    if is_open:
                        worker.restart()

    def missing(self, program: Program) -> str:
        """Returns commands that install the libraries which a program needs, "" if none lacks."""
        return languages.missing_libraries(program.code, self._jars)

    def machine(self) -> dict[str, Any]:
        """Returns how fast this machine runs a fixed program now, and how many programs it retried.

        `speed` is relative to a current server processor: 0.5 takes twice as long. It counts wall
        time, so other work on the machine lowers it; `processor speed` counts processor time.
        """
        program = Program("speed", "python", _SPEED_TEST, timeout=30.0, rule="output")
        [(_, _, verdict)] = self._run(iter([(0, program)]), self._slots[:1])
        seconds = [float(number) for number in verdict.stdout.split()]
        # A test that timed out prints nothing: its speed is 0.
        processor, wall = seconds if len(seconds) == 2 else (float("inf"), float("inf"))
        return {
            "speed": _SPEED_TEST_SECONDS / wall,
            "processor speed": _SPEED_TEST_SECONDS / processor,
            "retried": self._retried,
            "retried and finished": self._retried_finished,
        }

    def _job(self, program: Program) -> tuple[bytes, float, float, dict[str, Any]]:
        """Returns the mode, the limits of processor and wall time in seconds, and the job.

        The job is the input of the judge in the sandbox.
        """
        if program.language not in LANGUAGES:
            raise UserError(
                f"{program.task_id}: no language {program.language}; the languages are "
                f"{', '.join(LANGUAGES)}"
            )
        if self.mode == "isolated" and program.language == "python" and program.test:
            fields = ("candidate", "test", "entry_point", "prompt")
            job = {name: getattr(program, name) for name in fields}
            return slot.ISOLATED, program.timeout, program.timeout * WALL, job
        languages.require(program.language)
        job = languages.job(program, self._config.memory_mb, self._jars)
        mode = slot.PYTHON if program.language == "python" else slot.TOOLCHAIN
        build_seconds = sum(limit for _, limit in job["build"])
        # One second more than the judge's own limit, so that the judge reports a timeout.
        return mode, program.timeout, program.timeout * WALL + build_seconds + 1.0, job

    def _probe(self, allow_unsafe: bool) -> dict[str, bool]:
        """Returns which layers are on, as a worker reports and as a program in it observes."""
        reported = self._slots[0].layers
        program = Program("probe", "python", _PROBE, timeout=60.0, rule="output")
        self._slots[0].start(program, *self._job(program))
        verdict = self._slots[0].finish()
        observed = json.loads(verdict.stdout) if verdict.status == "passed" else {}
        layers = {}
        for name in (*reported, "network", "root"):
            # A required layer that the program did not observe counts as off.
            is_observed = observed.get(name, name not in _REQUIRED)
            layers[name] = reported.get(name, True) and is_observed
        missing = [name for name in _REQUIRED if not layers[name]]
        if missing and not allow_unsafe:
            raise UserError(
                "programs that a model wrote cannot be isolated on this machine "
                f"({', '.join(missing)}): run as root, "
                "or let users make namespaces (sysctl kernel.unprivileged_userns_clone=1 "
                "kernel.apparmor_restrict_unprivileged_userns=0), "
                "or accept the danger with --allow-unsafe"
            )
        return layers


def _check_jar(jar: str) -> None:
    """Raises UserError if a Java archive is missing or would be hidden in the sandbox."""
    if not os.path.isfile(jar):
        raise UserError(f"no file {jar}")
    if jar.startswith("/tmp/"):
        raise UserError(f"{jar}: programs have a separate /tmp; move the file elsewhere")


def _paths_outside_usr(paths: Iterable[str]) -> tuple[str, ...]:
    """Returns each path once, without those that are visible in the sandbox as part of /usr."""
    unique = dict.fromkeys(paths)
    return tuple(path for path in unique if path != "/usr" and not path.startswith("/usr/"))


def _uid(number: int) -> int | None:
    """Returns an unused uid for the candidates of a worker, None if the user is not root.

    The next uid is that of the worker's judge.
    """
    if os.geteuid():
        return None
    # Executors of different processes get different uids as far as possible: the limit of
    # processes counts per uid.
    return _FIRST_UID + (os.getpid() * 16 + 2 * number) % _UIDS


class _Slot:
    """The executor's end of one worker."""

    def __init__(self, config: slot.Config):
        self._config = config
        self._file: Any = None  # the job's memory file, open while a program runs
        self._launch()

    def _launch(self) -> None:
        # SEQPACKET keeps the boundaries of messages, and passes file descriptors.
        self.socket, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package_root = str(Path(__file__).resolve().parents[2])
        # -I and -S: neither the user's environment nor installed packages are in the memory that
        # candidates are forked from.
        command = [
            sys.executable,
            *("-I", "-S", "-B", "-c", _START),
            package_root,
            str(worker_end.fileno()),
            json.dumps(self._config),
        ]
        # A new session: Ctrl-C reaches only the executor, which then closes the worker. The empty
        # environment keeps secrets from the candidate.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[worker_end.fileno()],
            env={},
            start_new_session=True,
        )
        worker_end.close()

    @functools.cached_property
    def layers(self) -> dict[str, bool]:
        """Returns the layers that the worker has set up. Raises UserError if it cannot start."""
        message = json.loads(self._receive() or '{"error": "its process ended"}')
        if "error" in message:
            raise UserError(
                "the sandbox cannot be set up on this machine (it needs Linux 5.12 or newer): "
                f"{message['error']}"
            )
        return message

    def start(
        self, program: Program, mode: bytes, seconds: float, wall: float, job: dict[str, Any]
    ) -> None:
        """Sends a program to the worker; starts a new worker if it is dead.

        Args:
            program: as the caller gave it.
            mode: how the judge runs it, see `slot`.
            seconds: limit of processor time.
            wall: limit of wall time, in seconds.
            job: the input of the judge.
        """
        if self._file:
            self._file.close()
        # The job travels as an open memory file: see `slot`.
        self._file = open(os.memfd_create("job", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115
        self._file.write(json.dumps(job).encode())
        self._file.flush()
        self._program = program
        self._start_time = time.monotonic()
        header = slot.HEADER.pack(mode, seconds, wall)
        try:
            self._send(header)
        except BrokenPipeError:
            self.restart()
            self._send(header)

    def _send(self, header: bytes) -> None:
        assert self.layers  # this reads the worker's first message
        socket.send_fds(self.socket, [header], [self._file.fileno()])

    def finish(self) -> Verdict:
        """Waits for the verdict; starts a new worker if this one died."""
        end = self._receive()
        task_id = self._program.task_id
        seconds = time.monotonic() - self._start_time
        with self._file as file:
            file.seek(0)
            content = file.read()
        if end == slot.DONE:
            return Verdict(task_id, seconds=seconds, **json.loads(content))
        if end == slot.TIMEOUT:
            return Verdict(task_id, "timeout", seconds=seconds)
        # An empty message: a process of the worker was killed from outside.
        if not end:
            self.restart()
        return Verdict(task_id, "error", "the sandbox failed to run it", seconds)

    def _receive(self) -> bytes:
        """Returns the worker's next message, empty if the worker is dead."""
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def restart(self) -> None:
        """Ends the worker and starts a new one."""
        self.socket.close()
        self._process.wait()
        # The new worker reports its layers anew.
        self.__dict__.pop("layers", None)
        self._launch()

    def close(self) -> None:
        """Ends the worker and waits until its processes are gone."""
        self.socket.close()
        self._process.wait()
        if self._file:
            self._file.close()
