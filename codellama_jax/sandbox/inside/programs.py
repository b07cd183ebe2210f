"""Compatible mode: one program as the public harnesses build it, judged by how it ends.

A program that ends early with status 0 does not pass: a random word must come out after its tests. It is out of a candidate's sight
unless it looks for it on purpose (in its own memory, source or binary), which no one-process harness can prevent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

from codellama_jax.sandbox.inside import linux as kernel

if TYPE_CHECKING:
    from codellama_jax.sandbox.inside.slot import Confinement

OUTPUT_CAP = 1 << 20  # bytes kept of the beginning of each stream
TAIL_CAP = 4096  # and of its end
_PIPE = 1 << 16
DETAIL_CAP = 2000  # characters of a verdict
_WRONG = ("ssert", "FAIL", "Test failed")
_OUT_OF_MEMORY = (
    "MemoryError",
    "std::bad_alloc",
    "OutOfMemory",
    "out of memory",
    "Allowed memory size",
)


def read_job(fd: int) -> dict:
    return json.loads(os.pread(fd, os.fstat(fd).st_size, 0))


def write_verdict(
    fd: int, status: str, detail: str = "", signal: int = 0, stdout: str = ""
) -> None:
    """Overwrites the job with its verdict."""
    os.ftruncate(fd, 0)
    data = json.dumps(
        {"status": status, "detail": detail, "signal": signal, "stdout": stdout}
    ).encode()
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)


class Step:
    """A process of the candidate's that has ended: its exit status, and the beginning and the end of its output."""

    def __init__(self, box: Confinement, job: dict, argv: list[str], seconds: float, wall: float):
        pipes = {name: os.pipe() for name in ("stdout", "stderr", "token")}
        self.head, self.tail = dict.fromkeys(pipes, b""), dict.fromkeys(pipes, b"")
        kills, deadline = box.oom_kills(), time.monotonic() + wall
        pid = os.fork()
        if pid == 0:
            _become(box, job, argv, [writer for _, writer in pipes.values()], seconds)
        for _, writer in pipes.values():
            os.close(writer)
        self._streams = {reader: name for name, (reader, _) in pipes.items()}
        late = not self._wait(pid, deadline)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        self.out_of_memory = box.oom_kills() > kills
        out_of_time = not self.out_of_memory and kernel.out_of_time(status, usage, seconds)
        self.timed_out = late or out_of_time
        self.code = 0 if self.timed_out else os.waitstatus_to_exitcode(status)
        self._close()

    def _wait(self, pid: int, deadline: float) -> bool:
        """Reads output until the process ends, or returns False when the time is over."""
        process = os.pidfd_open(pid)
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready = select.select([process, *self._streams], [], [], left)[0]
                for fd in ready:
                    if fd != process and not self._take(fd):
                        del self._streams[fd]
                        os.close(fd)
                if process in ready:
                    return True
            return False
        finally:
            os.close(process)

    def _take(self, fd: int) -> bytes:
        name, data = self._streams[fd], os.read(fd, _PIPE)
        self.head[name] += data[: OUTPUT_CAP - len(self.head[name])]
        self.tail[name] = (self.tail[name] + data)[-TAIL_CAP:]
        return data

    def _close(self) -> None:
        """Takes what is still in the pipes, once: a daemon that writes for ever does not hold the verdict up."""
        for fd in self._streams:
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                self._take(fd)
            os.close(fd)


def judge(box: Confinement, seconds: float, job_fd: int) -> None:
    """Runs a job's commands and writes the verdict."""
    job = read_job(job_fd)
    if box.layers["namespaces"]:
        return _run_job(box, job, job_fd)
    import tempfile  # the system's own /tmp: a folder of its own, and nothing left in it

    with tempfile.TemporaryDirectory(prefix="codellama_jax-") as folder:
        os.chmod(folder, 0o711)
        return _run_job(box, job | {"work": f"{folder}/work"}, job_fd)


def _run_job(box: Confinement, job: dict, job_fd: int) -> None:
    _write_files(box, job)
    for argv, limit in job["build"]:
        step = Step(box, job, argv, limit, limit)
        if step.timed_out or step.code:
            said = (step.head["stderr"] + step.head["stdout"]).decode(errors="replace")[:DETAIL_CAP]
            return write_verdict(
                job_fd, "timeout" if step.timed_out else "error", f"build: {job['hint']}{said}"
            )
    for name in job["remove"]:
        os.unlink(f"{job['work']}/{name}")
    step = Step(box, job, job["run"], job["timeout"], job["wall"])
    status, detail, number = _verdict(step, job)
    detail = detail[-DETAIL_CAP:] if status == "passed" else job["hint"] + detail[-DETAIL_CAP:]
    return write_verdict(
        job_fd, status, detail, number, step.head["stdout"].decode(errors="replace")
    )


def _verdict(step: Step, job: dict) -> tuple[str, str, int]:
    """Returns status, detail and signal of a run by the job's rule."""
    stdout, stderr = (step.tail[name].decode(errors="replace") for name in ("stdout", "stderr"))
    said, token = stdout + stderr, job["token"]
    if step.timed_out:
        return "timeout", "", 0
    if step.code and (step.out_of_memory or any(mark in stderr for mark in _OUT_OF_MEMORY)):
        return "out_of_memory", stderr, 0
    if step.code < 0 and not (step.code == -signal.SIGABRT and "ssert" in stderr):
        return "crashed", f"killed by {signal.Signals(-step.code).name}", -step.code
    if step.code or any(mark in said for mark in job["marks"]):
        wrong = any(mark in said for mark in _WRONG) or (step.code == 1 and not stderr)
        return "failed" if wrong else "error", stderr or stdout, 0
    if token and token not in step.tail["token"].decode(errors="replace") + said:
        return "failed", "ended before its tests were done", 0
    printed = (step.head["stdout"] + step.head["stderr"]).decode(errors="replace").strip()
    if job["silent"] and printed != token:
        return "failed", f"printed: {printed[:200]}", 0
    return "passed", "", 0


def _write_files(box: Confinement, job: dict) -> None:
    if not job["files"] and not job["stdin"]:
        return
    work = job["work"]
    os.mkdir(work)
    os.chmod(work, 0o755)
    for name, text in [*job["files"].items(), (".stdin", job["stdin"])]:
        with open(f"{work}/{name}", "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
        os.chmod(f"{work}/{name}", 0o644)
    if box.config.uid is not None:
        os.chown(work, box.config.uid, box.config.uid)


def _become(
    box: Confinement, job: dict, argv: list[str], outputs: list[int], seconds: float
) -> None:
    """In the forked child: confines it and runs the command, or the Python program in this very interpreter. Does not return."""
    try:
        os.setsid()
        work = job["work"] if os.path.exists(job["work"]) else "/tmp"
        stdin = os.open(f"{work}/.stdin" if job["stdin"] or argv else "/dev/null", os.O_RDONLY)
        for target, fd in enumerate((stdin, outputs[0], outputs[1])):
            os.dup2(fd, target)
        os.chdir(work)
        python = not argv
        box.confine(python, seconds, {outputs[2]} if python else set())
        if python:
            _run_python(job, outputs[2])
        os.execve(argv[0], argv, job["env"] | {"HOME": work})
    except OSError as error:
        os.write(2, f"cannot run {argv}: {error}".encode())
    finally:
        os._exit(127)


def _run_python(job: dict, token_fd: int) -> None:
    code, token = job.pop("python"), job.pop("token").encode()
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"} if job["main"] else {})
        os.write(token_fd, token)
        status = 0
    except SystemExit as stop:
        status = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}"[:2000], file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 255)
