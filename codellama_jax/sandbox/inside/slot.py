"""One worker: a warm interpreter inside a sandbox that forks a fresh, more confined pair of processes for each program.

    executor -> launcher -> warden (pid 1, own root and network) -> judge (pid 1 of the program's own namespaces) -> candidate

The launcher stays outside to remove the control groups. The warden never sees a program: a program lies in a memory file that the
warden hands on unread, so that nothing of a test is left in the memory that later candidates are forked from. The judge decides and
writes the verdict into that file; the candidate holds neither the file nor the socket. All ends when the executor's socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

from codellama_jax.sandbox.inside import isolated, programs
from codellama_jax.sandbox.inside import linux as kernel

HEADER = struct.Struct("cdd")  # how to judge, seconds of processor time and of wall time
ISOLATED, PYTHON, TOOLCHAIN = b"i", b"p", b"t"
DONE, TIMEOUT, DIED = b"d", b"t", b"x"
_ROOT = "/sys"  # a folder of every Linux machine to build the new root on
_WRITABLE = ("/tmp", "/dev/shm")
_ETC = ("alternatives", "ld.so.cache", "java*", "mono", "php", "localtime")
_PACKAGES = (
    "lib/python3*/site-packages",
    "lib/python3*/dist-packages",
    "local/lib/python3*/*-packages",
)  # benchmark files may lie there
_CGROUPS = "/sys/fs/cgroup"


class Config(NamedTuple):
    uid: (
        int | None
    )  # the candidate's; the judge of Python tests is uid + 1; None keeps the caller's
    memory_mb: int
    processes: int
    tmp_mb: int
    binds: tuple[str, ...]  # folders and files shown at their own paths besides the system's


class Confinement(NamedTuple):
    """What is on, and what a fresh process needs to become a candidate."""

    config: Config
    layers: dict[str, bool]
    cgroup_procs: tuple[int, ...] = ()  # open files that a process joins a group through
    oom_events: int = -1  # an open file that counts kills for memory

    def confine(self, python: bool, seconds: float, keep: set[int], judge: bool = False) -> None:
        """Turns this process into one that may run hostile code; `python` also forbids processes, and limits the address space."""
        for fd in () if judge else self.cgroup_procs:
            os.write(fd, b"0")
        size = self.config.memory_mb << 20
        limits = (size, None) if python else (None, size)
        kernel.limit(
            *limits, self.config.processes, self.config.tmp_mb << 20, kernel.cpu_limit(seconds)
        )
        if self.config.uid is not None or self.layers["namespaces"]:
            uid = None if self.config.uid is None else self.config.uid + judge
            kernel.drop_privileges(uid)
        if self.layers["seccomp"]:
            kernel.seccomp(kernel.NO_PROCESSES if python else kernel.NO_MOUNTS)
        kernel.close_all_but(keep)

    def oom_kills(self) -> int:
        """Returns how often the kernel killed a process of this slot for memory."""
        text = os.pread(self.oom_events, 4096, 0).decode() if self.oom_events >= 0 else ""
        return sum(
            int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")
        )


def main(fd: int, config_json: str) -> None:
    """Runs the worker on an inherited socket until its other end is closed."""
    config = Config(*json.loads(config_json))
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    sock = socket.socket(fileno=fd)
    groups = _make_groups(config)
    layers = {
        "uid": config.uid is not None,
        "rlimits": True,
        "seccomp": _can(lambda: kernel.seccomp(kernel.KEYHOLE)),
        "cgroup": bool(groups.folders),
    }
    layers["namespaces"], own_users = _unshare()
    if own_users:  # which knows no uid but the caller's
        config, layers["uid"] = config._replace(uid=None), False
    warden = os.fork()
    if not warden:
        kernel.die_with_parent()
        _warden(sock, Confinement(config, layers, groups.procs, groups.oom_events))
    sock.close()
    os.waitpid(warden, 0)
    groups.remove()


def _warden(sock: socket.socket, box: Confinement) -> None:
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        if box.layers["namespaces"]:
            _build_root(box.config)
    except OSError as error:
        sock.send(json.dumps({"error": str(error)}).encode())
        os._exit(0)
    if box.layers["seccomp"]:
        kernel.seccomp(kernel.KEYHOLE)
    kernel.bound_capabilities()
    kernel.hide_memory()
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix)]
    sys.set_int_max_str_digits(0)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogatepass")  # a program may print half a character
    isolated.rehearse()
    gc.collect()
    gc.freeze()
    os.dup2(1, 2)  # /dev/null: from here on nobody writes to the user's terminal
    sock.send(json.dumps(box.layers).encode())
    while True:
        header, fds, _, _ = socket.recv_fds(sock, HEADER.size, 1)
        if not header:
            os._exit(0)
        mode, seconds, wall = HEADER.unpack(header)
        pid = _fork_judge(own_pids, box.layers["namespaces"])
        if pid == 0:
            _judge(sock, box, mode, seconds, fds[0])
        os.close(fds[0])
        end = _watch(sock, pid, seconds, wall)
        if box.layers["namespaces"]:
            _clean_folders(box.config)
        sock.send(end)


def _fork_judge(own_pids: int, namespaces: bool) -> int:
    """Forks; the child is the first process of a pid namespace."""
    if namespaces:
        kernel.unshare(kernel.NEWPID)
    pid = os.fork()
    if namespaces and pid:
        kernel.setns(own_pids, kernel.NEWPID)
    return pid


def _judge(sock: socket.socket, box: Confinement, mode: bytes, seconds: float, job: int) -> None:
    status = 1
    try:
        sock.close()
        kernel.hide_memory()
        if not box.layers["namespaces"]:
            os.setsid()
        elif mode == TOOLCHAIN:
            kernel.unshare(kernel.NEWNS)
            _mount_proc("/proc")
        run = isolated.judge if mode == ISOLATED else programs.judge
        run(box, seconds, job)
        status = 0
    except Exception as error:
        programs.write_verdict(job, "error", f"sandbox: {type(error).__name__}: {error}")
        status = 0
    finally:
        os._exit(status)


def _watch(sock: socket.socket, pid: int, seconds: float, wall: float) -> bytes:
    """Waits for the judge and returns how it ended. Its end is the end of every process in its namespaces."""
    process = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(sock, 0)  # nothing but a hang-up
    events = dict(poll.poll(wall * 1000))
    os.close(process)
    if process not in events:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # without namespaces the judge leads a group
    _, status, usage = os.wait4(pid, 0)
    if sock.fileno() in events and process not in events:
        os._exit(0)
    if not events or kernel.out_of_time(status, usage, seconds):
        return TIMEOUT
    return DIED if status else DONE


def _can(action: Callable[[], object]) -> bool:
    """Tries `action` in a child process."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _unshare() -> tuple[bool, bool]:
    """Enters the namespaces of the slot. Returns whether the system let us, and whether it took a user namespace."""
    flags = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS
    own_users = not _can(lambda: kernel.unshare(flags))
    try:
        if own_users:
            kernel.enter_user_namespace()
        kernel.unshare(flags)
        kernel.mount("none", "/", flags=kernel.PRIVATE | kernel.RECURSIVE)
    except OSError:
        return False, own_users
    return True, own_users


def _build_root(config: Config) -> None:
    """Replaces the root by a small read-only one: the system's programs, the interpreter, /dev, /proc and room for /tmp."""
    kernel.mount("tmpfs", _ROOT, "tmpfs", kernel.NOSUID, "size=1m,nr_inodes=1000,mode=755")
    for name in ("tmp", "proc", "dev/shm", "etc", ".closed/proc"):
        os.makedirs(f"{_ROOT}/{name}")
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{_ROOT}/{name}")
        elif os.path.isdir(f"/{name}"):
            _show(f"/{name}")
    etc = [path for pattern in _ETC for path in glob.glob(f"/etc/{pattern}")]
    for path in ["/usr", *etc, *config.binds]:
        _show(path)
    for prefix in {"/usr", *config.binds}:
        for folder in (f for pattern in _PACKAGES for f in glob.glob(f"{_ROOT}{prefix}/{pattern}")):
            kernel.mount("tmpfs", folder, "tmpfs", kernel.READ_ONLY, "size=4k")
    for name in ("null", "zero", "full", "random", "urandom"):
        _show(f"/dev/{name}", devices=True)
    _mount_proc(f"{_ROOT}/.closed/proc")
    os.chmod(f"{_ROOT}/.closed", 0)  # a user may mount /proc only while another one is in sight
    kernel.bind(_ROOT, _ROOT, devices=True)
    kernel.pivot_root(_ROOT)
    for folder in _WRITABLE:
        _mount_writable(config, folder)
    os.chdir("/tmp")


def _show(path: str, devices: bool = False) -> None:
    target = _ROOT + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "x"):
            pass
    kernel.bind(path, target, devices=devices)


def _mount_proc(target: str) -> None:
    with contextlib.suppress(
        PermissionError
    ):  # some containers forbid it; most programs do without
        kernel.mount("proc", target, "proc", kernel.NOSUID | kernel.NODEV | kernel.NOEXEC)


def _clean_folders(config: Config) -> None:
    """Replaces the writable folders if anything was left in them."""
    for folder in _WRITABLE:
        if os.listdir(folder) or os.stat(folder).st_mode & 0o7777 != 0o1777:
            kernel.unmount(folder)
            _mount_writable(config, folder)


def _mount_writable(config: Config, folder: str) -> None:
    size = f"size={config.tmp_mb}m,nr_inodes=20000,mode=1777"
    kernel.mount("tmpfs", folder, "tmpfs", kernel.NOSUID | kernel.NODEV, size)


class _Groups(NamedTuple):
    """Control groups of a worker: (open parent folder, name) of each, open files to join them through, and one that counts kills."""

    folders: tuple[tuple[int, str], ...] = ()
    procs: tuple[int, ...] = ()
    oom_events: int = -1

    def remove(self) -> None:
        for parent, name in self.folders:
            os.rmdir(name, dir_fd=parent)


def _make_groups(config: Config) -> _Groups:
    """Makes groups that limit memory and processes, where the system's are writable; elsewhere none."""
    name, memory = f"codellama_jax-{os.getpid()}", str(config.memory_mb << 20)
    joined = "tasks"  # moving one thread takes no lock that all processes share
    if os.path.exists(f"{_CGROUPS}/cgroup.controllers"):
        joined = "cgroup.procs"
        limits, events = (
            {".": {"memory.max": memory, "pids.max": str(config.processes)}},
            f"./{name}/memory.events",
        )
    else:
        limits = {
            "memory": {"memory.limit_in_bytes": memory},
            "pids": {"pids.max": str(config.processes)},
        }
        events = f"memory/{name}/memory.oom_control"
    groups = _Groups()
    try:
        for hierarchy, values in limits.items():
            parent = os.open(f"{_CGROUPS}/{hierarchy}", os.O_RDONLY)
            os.mkdir(name, dir_fd=parent)
            groups = groups._replace(folders=(*groups.folders, (parent, name)))
            for file, value in values.items():
                with open(f"{_CGROUPS}/{hierarchy}/{name}/{file}", "w") as limit:
                    limit.write(value)
            procs = os.open(f"{_CGROUPS}/{hierarchy}/{name}/{joined}", os.O_WRONLY)
            groups = groups._replace(procs=(*groups.procs, procs))
        return groups._replace(oom_events=os.open(f"{_CGROUPS}/{events}", os.O_RDONLY))
    except OSError:
        groups.remove()
        return _Groups()
