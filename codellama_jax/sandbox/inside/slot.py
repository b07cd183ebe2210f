"""One worker: an interpreter in a sandbox that forks more confined processes for each program.

    executor -> launcher -> supervisor -> judge -> candidate

The executor is the user's process. The launcher is its child; it stays outside of the sandbox, so
that it can remove the control groups afterwards. The supervisor is process 1 of the worker's
namespaces, with its own root directory and an empty network. For each program it forks a judge,
process 1 of a pid namespace that this program alone uses. The judge forks the candidate, decides
how the program ended and writes the verdict.

The supervisor passes each job to the judge as a memory file (memfd) without reading it, so no test
is ever in the memory that later candidates are forked from. The candidate has neither this file
nor the socket open. Everything ends when the executor closes its socket.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import io
import json
import os
import select
import signal
import site
import socket
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

from codellama_jax.sandbox.inside import isolated, programs
from codellama_jax.system import linux

HEADER = struct.Struct("cdd")  # the mode, seconds of processor time, seconds of wall time
ISOLATED, PYTHON, TOOLCHAIN = b"i", b"p", b"t"  # modes
DONE, TIMEOUT, DIED = b"d", b"t", b"x"  # how a judge ended
_ROOT = "/sys"  # a folder of every Linux machine, on which the new root is built
_WRITABLE = ("/tmp", "/dev/shm")
_ETC = ("alternatives", "ld.so.cache", "java*", "mono", "php", "localtime")
# Folders of installed packages are hidden: a package may hold the benchmarks with their solutions.
_PACKAGES = (
    "lib/python3*/site-packages",
    "lib/python3*/dist-packages",
    "local/lib/python3*/*-packages",
)
_CGROUPS = "/sys/fs/cgroup"


class Config(NamedTuple):
    """Settings of a worker, sent to its launcher as JSON.

    Attributes:
        uid: user id of the candidates; the judge of Python tests has `uid + 1`. None keeps the
            caller's.
        memory_mb: limit of a program's memory, in MiB.
        processes: limit of a program's processes.
        tmp_mb: size of each writable folder, in MiB.
        binds: folders and files that programs see at their own paths, besides the system's.
    """

    uid: int | None
    memory_mb: int
    processes: int
    tmp_mb: int
    binds: tuple[str, ...]


class Confinement(NamedTuple):
    """The settings and open files that a fresh process needs to become a candidate.

    Attributes:
        config: the worker's settings.
        layers: which of uid, rlimits, seccomp, cgroup and namespaces are on.
        cgroup_procs: open files through which a process joins a control group.
        oom_events: an open file that counts kills for memory; -1 without control groups.
    """

    config: Config
    layers: dict[str, bool]
    cgroup_procs: tuple[int, ...] = ()
    oom_events: int = -1

    def confine(self, python: bool, seconds: float, keep: set[int], judge: bool = False) -> None:
        """Confines this process for good, so that it may run untrusted code.

        Args:
            python: forbids other programs and processes, and limits the address space.
            seconds: limit of processor time.
            keep: file descriptors that stay open, besides 0, 1 and 2.
            judge: confines the judge of Python tests: with its own uid, outside of the groups.
        """
        # The groups come first: joining one needs privileges, and files that are closed below.
        if not judge:
            for fd in self.cgroup_procs:
                os.write(fd, b"0")
        size = self.config.memory_mb << 20
        # Virtual machines such as Java's reserve more address space than they use. For them the
        # limit is on private writable memory.
        linux.limit(
            memory=size if python else None,
            data=None if python else size,
            processes=self.config.processes,
            file_size=self.config.tmp_mb << 20,
            cpu_seconds=linux.cpu_limit(seconds),
        )
        if self.config.uid is not None or self.layers["namespaces"]:
            # The judge of Python tests has another uid than the candidate, which therefore can
            # neither signal nor trace it.
            uid = None if self.config.uid is None else self.config.uid + judge
            linux.drop_privileges(uid)
        if self.layers["seccomp"]:
            linux.seccomp(linux.NO_PROCESSES if python else linux.NO_MOUNTS)
        linux.close_all_but(keep)

    def oom_kills(self) -> int:
        """Returns how often the kernel killed a process of this worker for memory."""
        if self.oom_events < 0:
            return 0
        # pread always starts at the beginning, so the file stays open between programs.
        text = os.pread(self.oom_events, 4096, 0).decode()
        counts = [line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")]
        return sum(map(int, counts))


def main(fd: int, config_json: str) -> None:
    """Runs the worker on an inherited socket until the other end is closed."""
    config = Config(*json.loads(config_json))
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    sock = socket.socket(fileno=fd)
    # The groups are made before the namespaces hide the system's folder of them.
    groups = _make_groups(config)
    layers = {
        "uid": config.uid is not None,
        "rlimits": True,
        "seccomp": _succeeds_in_child(_install_base_filter),
        "cgroup": bool(groups.folders),
    }
    layers["namespaces"], has_user_namespace = _unshare()
    if has_user_namespace:
        # A user namespace knows no uid but the caller's.
        config = config._replace(uid=None)
        layers["uid"] = False
    supervisor = os.fork()
    if not supervisor:
        linux.die_with_parent()
        _supervise(sock, Confinement(config, layers, groups.procs, groups.oom_events))
    sock.close()
    os.waitpid(supervisor, 0)
    groups.remove()


def _install_base_filter() -> None:
    linux.seccomp(linux.BASE_FILTER)


def _supervise(sock: socket.socket, confinement: Confinement) -> None:
    """Runs the supervisor: sets itself up, then judges one program per message. Never returns."""
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
    has_namespaces = confinement.layers["namespaces"]
    try:
        if has_namespaces:
            _build_root(confinement.config)
    except OSError as error:
        sock.send(json.dumps({"error": str(error)}).encode())
        os._exit(0)
    if confinement.layers["seccomp"]:
        _install_base_filter()
    linux.bound_capabilities()
    linux.hide_memory()
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix)]
    # A program may print an integer of any length. wire.py sets a limit while it parses.
    sys.set_int_max_str_digits(0)
    # `exit` and `quit`, with which many programs end: -S leaves them out.
    site.setquit()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A program may print a lone surrogate, which UTF-8 cannot encode.
            stream.reconfigure(errors="surrogatepass")
    isolated.rehearse()
    # After `freeze` the collector of a forked process does not touch these objects, so their
    # memory stays shared with this process.
    gc.collect()
    gc.freeze()
    # Standard output is /dev/null. From here on nothing is written to the user's terminal.
    os.dup2(1, 2)
    sock.send(json.dumps(confinement.layers).encode())
    while True:
        header, fds, _, _ = socket.recv_fds(sock, HEADER.size, 1)
        if not header:
            os._exit(0)
        mode, seconds, wall = HEADER.unpack(header)
        pid = _fork_judge(own_pids, has_namespaces)
        if pid == 0:
            _judge(sock, confinement, mode, seconds, fds[0])
        os.close(fds[0])
        end = _watch(sock, pid, seconds, wall)
        if has_namespaces:
            _clean_folders(confinement.config)
        sock.send(end)


def _fork_judge(own_pids: int, namespaces: bool) -> int:
    """Forks like `os.fork`; with `namespaces` the child is process 1 of a new pid namespace.

    `own_pids` is an open file of this process's pid namespace.
    """
    # NEWPID affects children only. The parent returns to its own namespace for the next fork.
    if namespaces:
        linux.unshare(linux.NEWPID)
    pid = os.fork()
    if namespaces and pid:
        linux.setns(own_pids, linux.NEWPID)
    return pid


def _judge(
    sock: socket.socket, confinement: Confinement, mode: bytes, seconds: float, job: int
) -> None:
    """Runs the judge of one program. Never returns.

    Args:
        sock: the supervisor's socket, which is closed here.
        confinement: the worker's.
        mode: ISOLATED, PYTHON or TOOLCHAIN.
        seconds: limit of processor time of each of the program's processes.
        job: the memory file that holds the job and receives the verdict.
    """
    status = 1
    try:
        sock.close()
        linux.hide_memory()
        if not confinement.layers["namespaces"]:
            # Without a pid namespace the group is the only way to end all processes at once.
            os.setsid()
        elif mode == TOOLCHAIN:
            # Compilers read /proc. It shows the processes of this pid namespace only.
            linux.unshare(linux.NEWNS)
            _mount_proc("/proc")
        run = isolated.judge if mode == ISOLATED else programs.judge
        run(confinement, seconds, job)
        status = 0
    except Exception as error:
        programs.write_verdict(job, "error", f"sandbox: {type(error).__name__}: {error}")
        status = 0
    finally:
        os._exit(status)


def _watch(sock: socket.socket, pid: int, seconds: float, wall: float) -> bytes:
    """Waits for the judge and returns DONE, TIMEOUT or DIED.

    `seconds` limits the processor time and `wall` the wall time. With namespaces, the end of the
    judge ends every process of its pid namespace. If the executor closes `sock`, this process ends.
    """
    process = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(sock, 0)  # no event but a hang-up, which is always reported
    events = dict(poll.poll(wall * 1000))
    os.close(process)
    if process not in events:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # Without namespaces the judge leads a process group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    if sock.fileno() in events and process not in events:
        os._exit(0)
    if not events or linux.out_of_time(status, usage, seconds):
        return TIMEOUT
    return DIED if status else DONE


def _succeeds_in_child(action: Callable[[], object]) -> bool:
    """Returns whether `action` raises nothing in a child process, which keeps its effects."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _unshare() -> tuple[bool, bool]:
    """Enters the namespaces of the worker.

    Returns whether the system permits that, and whether a user namespace was necessary for it.
    """
    flags = linux.NEWNS | linux.NEWPID | linux.NEWNET | linux.NEWIPC | linux.NEWUTS

    def unshare_all() -> None:
        linux.unshare(flags)

    needs_user_namespace = not _succeeds_in_child(unshare_all)
    try:
        if needs_user_namespace:
            linux.enter_user_namespace()
        linux.unshare(flags)
        # Mounts propagate to the old namespace by default: those of the sandbox must not.
        linux.mount("none", "/", flags=linux.PRIVATE | linux.RECURSIVE)
    except OSError:
        return False, needs_user_namespace
    return True, needs_user_namespace


def _build_root(config: Config) -> None:
    """Replaces the root directory by a small read-only one.

    It holds the system's programs, the interpreter, some devices, /proc and writable folders.
    """
    linux.mount("tmpfs", _ROOT, "tmpfs", linux.NOSUID, "size=1m,nr_inodes=1000,mode=755")
    for name in ("tmp", "proc", "dev/shm", "etc", ".closed/proc"):
        os.makedirs(f"{_ROOT}/{name}")
    # Most systems have /bin as a link into /usr, others as a folder.
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{_ROOT}/{name}")
        elif os.path.isdir(f"/{name}"):
            _show(f"/{name}")
    _show("/usr")
    for pattern in _ETC:
        for path in glob.glob(f"/etc/{pattern}"):
            _show(path)
    for path in config.binds:
        _show(path)
    for prefix in {"/usr", *config.binds}:
        _hide_packages(f"{_ROOT}{prefix}")
    for name in ("null", "zero", "full", "random", "urandom"):
        _show(f"/dev/{name}", devices=True)
    # In a user namespace the kernel permits a mount of /proc only while another one is visible.
    # This one is visible, but nobody can enter its folder.
    _mount_proc(f"{_ROOT}/.closed/proc")
    os.chmod(f"{_ROOT}/.closed", 0)
    # Binding the new root to itself makes all of it read-only, and a mount that can be the root.
    linux.bind(_ROOT, _ROOT, devices=True)
    linux.pivot_root(_ROOT)
    for folder in _WRITABLE:
        _mount_writable(config, folder)
    os.chdir("/tmp")


def _hide_packages(prefix: str) -> None:
    """Covers the folders of installed packages below `prefix` with empty ones."""
    for pattern in _PACKAGES:
        for folder in glob.glob(f"{prefix}/{pattern}"):
            linux.mount("tmpfs", folder, "tmpfs", linux.READ_ONLY, "size=4k")


def _show(path: str, devices: bool = False) -> None:
    """Binds a folder or file of the system to the same path below the new root, read-only."""
    target = _ROOT + path
    # A bind mount needs an existing target of the same type.
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "x"):
            pass
    linux.bind(path, target, devices=devices)


def _mount_proc(target: str) -> None:
    # Some containers forbid it, and most programs do not need it.
    with contextlib.suppress(PermissionError):
        linux.mount("proc", target, "proc", linux.NOSUID | linux.NODEV | linux.NOEXEC)


def _clean_folders(config: Config) -> None:
    """Replaces a writable folder if a program left files in it or changed its mode."""
    for folder in _WRITABLE:
        if os.listdir(folder) or os.stat(folder).st_mode & 0o7777 != 0o1777:
            linux.unmount(folder)
            _mount_writable(config, folder)


def _mount_writable(config: Config, folder: str) -> None:
    size = f"size={config.tmp_mb}m,nr_inodes=20000,mode=1777"
    linux.mount("tmpfs", folder, "tmpfs", linux.NOSUID | linux.NODEV, size)


class _Groups(NamedTuple):
    """Control groups of a worker.

    Attributes:
        folders: (open parent folder, name) of each group.
        procs: open files through which a process joins each group.
        oom_events: an open file that counts kills for memory; -1 if there are no groups.
    """

    folders: tuple[tuple[int, str], ...] = ()
    procs: tuple[int, ...] = ()
    oom_events: int = -1

    def remove(self) -> None:
        """Removes the groups, which must be empty."""
        # By their open parents: in the new root the paths do not exist.
        for parent, name in self.folders:
            os.rmdir(name, dir_fd=parent)


def _make_groups(config: Config) -> _Groups:
    """Makes groups that limit memory and processes; none if the system's are not writable."""
    name = f"codellama_jax-{os.getpid()}"
    memory = str(config.memory_mb << 20)
    processes = str(config.processes)
    if os.path.exists(f"{_CGROUPS}/cgroup.controllers"):
        # Version 2: one hierarchy for all controllers.
        joined = "cgroup.procs"
        limits = {".": {"memory.max": memory, "pids.max": processes}}
        events = f"./{name}/memory.events"
    else:
        # Version 1: one hierarchy per controller. Moving one thread through `tasks` takes no lock
        # that all processes of the machine share.
        joined = "tasks"
        limits = {
            "memory": {"memory.limit_in_bytes": memory},
            "pids": {"pids.max": processes},
        }
        events = f"memory/{name}/memory.oom_control"
    groups = _Groups()
    try:
        for hierarchy, values in limits.items():
            parent = os.open(f"{_CGROUPS}/{hierarchy}", os.O_RDONLY)
            os.mkdir(name, dir_fd=parent)
            # Recorded at once, so that an error further down removes it.
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
