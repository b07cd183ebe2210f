"""Compatible mode: one program as the public harnesses build it, judged by how it ends.

A program that ends early with status 0 does not pass: a random word must come out after its tests. It is out of a candidate's sight
unless it looks for it on purpose (in its own memory, source or binary), which no one-process harness can prevent.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codellama_jax.evaluation.sandbox.slot import Confinement

OUTPUT_CAP = 1 << 20  # bytes kept of the beginning of each stream
TAIL_CAP = 4096  # and of its end
WORK = "/tmp/work"


def read_job(fd: int) -> dict:
    return json.loads(os.pread(fd, os.fstat(fd).st_size, 0))


def write_verdict(fd: int, status: str, detail: str = "", signal: int = 0, stdout: str = "") -> None:
    """Overwrites the job with its verdict."""
    os.ftruncate(fd, 0)
    data = json.dumps({"status": status, "detail": detail, "signal": signal, "stdout": stdout}).encode()
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)


class Step:
    """A running process of the candidate's: its exit status, signal and capped output."""

    def __init__(self, box: Confinement, job: dict, argv: list[str], seconds: float):
        self._streams, outputs = {}, []
        for name in ("stdout", "stderr", "token"):
            reader, writer = os.pipe()
            self._streams[reader] = name
            outputs.append(writer)
        self.head, self.tail = dict.fromkeys(("stdout", "stderr", "token"), b""), dict.fromkeys(("stdout", "stderr", "token"), b"")
        kills = box.oom_kills()
        pid = os.fork()
        if pid == 0:
            _become(box, job, argv, outputs, seconds)
        for fd in outputs:
            os.close(fd)
        self.timed_out = not self._wait(pid, time.monotonic() + seconds)
        self.code = 0 if self.timed_out else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.out_of_memory = box.oom_kills() > kills
        self._drain(0)
        for fd in self._streams:
            os.close(fd)

    def _wait(self, pid: int, deadline: float) -> bool:
        """Reads output until the process ends or the time is over."""
        process = os.pidfd_open(pid)
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready = select.select([process, *self._streams], [], [], left)[0]
                self._take([fd for fd in ready if fd != process])
                if process in ready:
                    return True
            return False
        finally:
            os.close(process)

    def _drain(self, wait: float) -> None:
        for fd in self._streams:
            os.set_blocking(fd, False)
        while ready := select.select(list(self._streams), [], [], wait)[0]:
            self._take(ready)

    def _take(self, fds: list[int]) -> None:
        for fd in fds:
            data = os.read(fd, 1 << 16)
            if not data:
                del self._streams[fd]
                os.close(fd)
                continue
            name = self._streams[fd]
            self.head[name] = (self.head[name] + data)[:OUTPUT_CAP] if len(self.head[name]) < OUTPUT_CAP else self.head[name]
            self.tail[name] = (self.tail[name] + data)[-TAIL_CAP:]


def judge(box: Confinement, seconds: float, job_fd: int) -> None:
    job = read_job(job_fd)
    box_step = None
    _write_files(box, job)
    for argv, limit in job["build"]:
        box_step = Step(box, job, argv, limit)
        if box_step.timed_out or box_step.code:
            detail = (box_step.head["stderr"] + box_step.head["stdout"]).decode(errors="replace")[-2000:]
            status = "timeout" if box_step.timed_out else "error"
            return write_verdict(job_fd, status, f"build: {detail}")
    for name in job["remove"]:
        os.unlink(f"{WORK}/{name}")
    step = Step(box, job, job["run"], job["timeout"])
    status, detail, number = _verdict(step, job)
    return write_verdict(job_fd, status, detail[-2000:], number, step.head["stdout"].decode(errors="replace"))


def _verdict(step: Step, job: dict) -> tuple[str, str, int]:
    """Returns status, detail and signal of a run by the job's rule."""
    stdout, stderr = step.tail["stdout"].decode(errors="replace"), step.tail["stderr"].decode(errors="replace")
    if step.timed_out:
        return "timeout", "", 0
    if step.out_of_memory or any(
        mark in stderr for mark in ("MemoryError", "std::bad_alloc", "OutOfMemory", "out of memory", "Allowed memory size")
    ):
        return "out_of_memory", stderr, 0
    if step.code < 0:
        return "crashed", f"killed by {signal.Signals(-step.code).name}", -step.code
    if step.code or any(mark in stdout + stderr for mark in job["marks"]):
        return ("failed" if any(mark in stderr + stdout for mark in ("ssert", "FAIL")) else "error"), stderr or stdout, 0
    if job["token"] and job["token"] not in step.tail["token"].decode(errors="replace") + stdout + stderr:
        return "failed", "ended before its tests were done", 0
    if job["silent"] and (step.head["stdout"] + step.head["stderr"]).decode(errors="replace").strip() != job["token"]:
        return "failed", f"printed: {stdout[:200]}{stderr[:200]}", 0
    return "passed", "", 0


def _write_files(box: Confinement, job: dict) -> None:
    if not job["files"] and not job["stdin"]:
        return
    os.mkdir(WORK)
    os.chmod(WORK, 0o755)
    for name, text in [*job["files"].items(), (".stdin", job["stdin"])]:
        with open(f"{WORK}/{name}", "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
        os.chmod(f"{WORK}/{name}", 0o644)
    if box.config.uid is not None:
        os.chown(WORK, box.config.uid, box.config.uid)


def _become(box: Confinement, job: dict, argv: list[str], outputs: list[int], seconds: float) -> None:
    """In the forked child: confines it and runs the command, or the Python program in this very interpreter. Does not return."""
    try:
        os.setsid()
        stdin = os.open(f"{WORK}/.stdin" if os.path.exists(WORK) else "/dev/null", os.O_RDONLY)
        for target, fd in enumerate((stdin, outputs[0], outputs[1])):
            os.dup2(fd, target)
        os.chdir(WORK if os.path.exists(WORK) else "/tmp")
        python = not argv
        box.confine(python, seconds, {outputs[2]} if python else set())
        if python:
            _run_python(job, outputs[2])
        os.execve(argv[0], argv, job["env"])
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
