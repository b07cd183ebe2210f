"""Compatible mode: runs one program as the public harnesses build it, and judges how it ends.

A program that ends early with status 0 does not pass: a random token must be printed after its
tests. Only a candidate that searches its own memory, source or binary on purpose finds the token,
which no harness with a single process can prevent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from codellama_jax.system import linux

if TYPE_CHECKING:
    from codellama_jax.sandbox.inside.slot import Confinement

OUTPUT_CAP = 1 << 20  # bytes kept of the beginning of each stream
TAIL_CAP = 4096  # bytes kept of the end of each stream
_READ_SIZE = 1 << 16  # bytes per read
DETAIL_CAP = 2000  # characters of a verdict's detail
# Output that marks a failed test, as opposed to another error. "ssert" covers "AssertionError" of
# Python and Java and "Assertion failed" of C and JavaScript.
_FAILED_TEST = ("ssert", "FAIL", "Test failed")
_OUT_OF_MEMORY = (
    "MemoryError",
    "std::bad_alloc",
    "OutOfMemory",
    "out of memory",
    "Allowed memory size",
)


def read_job(fd: int) -> dict[str, Any]:
    """Reads the job from its memory file."""
    return json.loads(os.pread(fd, os.fstat(fd).st_size, 0))


def write_verdict(
    fd: int, status: str, detail: str = "", signal: int = 0, stdout: str = ""
) -> None:
    """Replaces the job in its memory file by the verdict.

    Args:
        fd: the memory file.
        status, detail, signal, stdout: fields of `verdicts.Verdict`.
    """
    os.ftruncate(fd, 0)
    verdict = {"status": status, "detail": detail, "signal": signal, "stdout": stdout}
    data = json.dumps(verdict).encode()
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)


def signal_name(number: int) -> str:
    """Returns the name of a signal, its number if it has none as most real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Step:
    """Runs one process of the candidate to its end.

    Attributes:
        code: exit status, or minus the signal that ended it; 0 if it timed out.
        timed_out: whether it exceeded its processor time or wall time.
        out_of_memory: whether the kernel killed it, or a child of it, for memory.
        head, tail: beginning and end of the streams stdout, stderr and token, in bytes.
    """

    def __init__(
        self,
        confinement: Confinement,
        job: dict[str, Any],
        argv: list[str],
        seconds: float,
        wall: float,
    ):
        """Forks and confines the process, and waits for its end.

        Args:
            confinement: of the worker.
            job: as `languages.job` makes it.
            argv: the command; empty to run the job's Python program in the forked interpreter.
            seconds: limit of processor time.
            wall: limit of wall time, in seconds.
        """
        pipes = {name: os.pipe() for name in ("stdout", "stderr", "token")}
        self.head = dict.fromkeys(pipes, b"")
        self.tail = dict.fromkeys(pipes, b"")
        kills = confinement.oom_kills()
        deadline = time.monotonic() + wall
        pid = os.fork()
        if pid == 0:
            writers = [writer for _, writer in pipes.values()]
            _become_candidate(confinement, job, argv, writers, seconds)
        for _, writer in pipes.values():
            os.close(writer)
        self._streams = {reader: name for name, (reader, _) in pipes.items()}
        is_late = not self._wait(pid, deadline)
        # The candidate leads a process group, see `_become_candidate`. The group is killed before
        # its leader is reaped: until then the kernel cannot reuse the number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        self.out_of_memory = confinement.oom_kills() > kills
        is_out_of_time = not self.out_of_memory and linux.out_of_time(status, usage, seconds)
        self.timed_out = is_late or is_out_of_time
        self.code = 0 if self.timed_out else os.waitstatus_to_exitcode(status)
        self._close()

    def _wait(self, pid: int, deadline: float) -> bool:
        """Reads output until the process ends, or returns False at the deadline."""
        process = os.pidfd_open(pid)
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready = select.select([process, *self._streams], [], [], left)[0]
                for fd in ready:
                    if fd != process and not self._read(fd):
                        # End of file: every process that could write to it has closed it.
                        del self._streams[fd]
                        os.close(fd)
                if process in ready:
                    return True
            return False
        finally:
            os.close(process)

    def _read(self, fd: int) -> bytes:
        """Reads available output of a stream, keeps its head and tail, and returns it."""
        name = self._streams[fd]
        data = os.read(fd, _READ_SIZE)
        self.head[name] += data[: OUTPUT_CAP - len(self.head[name])]
        self.tail[name] = (self.tail[name] + data)[-TAIL_CAP:]
        return data

    def _close(self) -> None:
        """Reads the output that is still in the pipes and closes them.

        Each pipe is read once: a daemon that writes for ever does not delay the verdict.
        """
        for fd in self._streams:
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                self._read(fd)
            os.close(fd)


def judge(confinement: Confinement, seconds: float, job_fd: int) -> None:
    """Runs the commands of the job in the memory file `job_fd` and writes its verdict there.

    `seconds` is not used: the job holds the limit of each command.
    """
    job = read_job(job_fd)
    if confinement.layers["namespaces"]:
        return _run_job(confinement, job, job_fd)
    # Without its own root the program shares the system's /tmp, so it gets a folder there that is
    # removed afterwards. Only this case needs the module.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="codellama_jax-") as folder:
        os.chmod(folder, 0o711)
        return _run_job(confinement, job | {"work": f"{folder}/work"}, job_fd)


def _run_job(confinement: Confinement, job: dict[str, Any], job_fd: int) -> None:
    _write_files(confinement, job)
    for argv, limit in job["build"]:
        step = Step(confinement, job, argv, limit, limit)
        if step.timed_out or step.code:
            output = step.head["stderr"] + step.head["stdout"]
            message = output.decode(errors="replace")[:DETAIL_CAP]
            status = "timeout" if step.timed_out else "error"
            return write_verdict(job_fd, status, f"build: {job['hint']}{message}")
    # A candidate that could read its source would find the token there.
    for name in job["remove"]:
        os.unlink(f"{job['work']}/{name}")
    step = Step(confinement, job, job["run"], job["timeout"], job["wall"])
    status, detail, number = _verdict(step, job)
    # The last characters of the error output hold the reason, in most languages.
    detail = detail[-DETAIL_CAP:]
    if status != "passed":
        detail = job["hint"] + detail
    stdout = step.head["stdout"].decode(errors="replace")
    return write_verdict(job_fd, status, detail, number, stdout)


def _contains_any(text: str, marks: tuple[str, ...] | list[str]) -> bool:
    return any(mark in text for mark in marks)


def _verdict(step: Step, job: dict[str, Any]) -> tuple[str, str, int]:
    """Returns status, detail and signal of a run by the job's rule."""
    stdout = step.tail["stdout"].decode(errors="replace")
    stderr = step.tail["stderr"].decode(errors="replace")
    # Marks and the token may be far from the end of a long output, which is in `detail`.
    output = ""
    for name in ("stdout", "stderr"):
        output += (step.head[name] + step.tail[name]).decode(errors="replace")
    token = job["token"]
    if step.timed_out:
        return "timeout", "", 0
    if step.code and (step.out_of_memory or _contains_any(stderr, _OUT_OF_MEMORY)):
        return "out_of_memory", stderr, 0
    # A failed assert() of C ends the process by SIGABRT. That is a failed test and no crash.
    is_assertion = step.code == -signal.SIGABRT and "ssert" in stderr
    if step.code < 0 and not is_assertion:
        return "crashed", f"killed by {signal_name(-step.code)}", -step.code
    if step.code or _contains_any(output, job["marks"]):
        # Some tests, such as those in Bash, report a failure by status 1 alone.
        is_failure = _contains_any(output, _FAILED_TEST) or (step.code == 1 and not stderr)
        return "failed" if is_failure else "error", stderr or stdout, 0
    if token and token not in step.tail["token"].decode(errors="replace") + output:
        return "failed", "ended before its tests were done", 0
    # HumanEval-X judges JavaScript by its output: console.assert prints and does not raise.
    printed = (step.head["stdout"] + step.head["stderr"]).decode(errors="replace").strip()
    if job["silent"] and printed != token:
        return "failed", f"printed: {printed[:200]}", 0
    return "passed", "", 0


def _write_files(confinement: Confinement, job: dict[str, Any]) -> None:
    """Writes the job's sources and its standard input into the working folder."""
    if not job["files"] and not job["stdin"]:
        return
    work = job["work"]
    os.mkdir(work)
    # Explicit modes: the umask of the user may hide files from the candidate's uid.
    os.chmod(work, 0o755)
    for name, text in [*job["files"].items(), (".stdin", job["stdin"])]:
        with open(f"{work}/{name}", "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
        os.chmod(f"{work}/{name}", 0o644)
    uid = confinement.config.uid
    if uid is not None:
        os.chown(work, uid, uid)


def _become_candidate(
    confinement: Confinement,
    job: dict[str, Any],
    argv: list[str],
    outputs: list[int],
    seconds: float,
) -> NoReturn:
    """Confines the forked child and runs the command or the Python program in it.

    Args:
        confinement: of the worker.
        job: as `languages.job` makes it.
        argv: the command; empty for the job's Python program.
        outputs: ends for writing of the pipes stdout, stderr and token.
        seconds: limit of processor time.
    """
    try:
        os.setsid()
        work = job["work"] if os.path.exists(job["work"]) else "/tmp"
        has_stdin_file = job["stdin"] or argv
        stdin = os.open(f"{work}/.stdin" if has_stdin_file else "/dev/null", os.O_RDONLY)
        for target, fd in enumerate((stdin, outputs[0], outputs[1])):
            os.dup2(fd, target)
        os.chdir(work)
        is_python = not argv
        # Only a Python program gets the pipe of the token: its runner below writes to it after
        # the tests. Programs of other languages print the token themselves.
        confinement.confine(is_python, seconds, {outputs[2]} if is_python else set())
        if is_python:
            _run_python(job, outputs[2])
        os.execve(argv[0], argv, job["env"] | {"HOME": work})
    except OSError as error:
        os.write(2, f"cannot run {argv}: {error}".encode())
    finally:
        # 127 is the shell's status for a command that cannot be started.
        os._exit(127)


def _run_python(job: dict[str, Any], token_fd: int) -> NoReturn:
    """Runs the job's Python program and ends this process with its exit status."""
    # Popped, so that the program does not find them in the job.
    code = job.pop("python")
    token = job.pop("token").encode()
    # HumanEval runs `exec(program, {})`, without `__name__ == "__main__"`.
    namespace = {"__name__": "__main__"} if job["main"] else {}
    try:
        exec(compile(code, "<program>", "exec"), namespace)
        os.write(token_fd, token)
        status = 0
    except SystemExit as stop:
        status = _exit_status(stop.code)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}"[:2000], file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 255)


def _exit_status(code: Any) -> int:
    """Returns the status with which the interpreter ends for `sys.exit(code)`."""
    if code is None:
        return 0
    return code if isinstance(code, int) else 1
