"""The kernel's isolation primitives through ctypes and os: namespaces, mounts, capabilities, limits, a seccomp filter."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import platform
import resource
import signal
import struct
from collections.abc import Iterable

NEWNS, NEWUTS, NEWIPC = 0x20000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, PRIVATE, DETACH = (
    1,
    2,
    4,
    8,
    4096,
    16384,
    1 << 18,
    2,
)
_AT_RECURSIVE, _ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 0x8000, 1, 2, 4
_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 4, 22, 24, 38
_CAPABILITY_VERSION = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)

_ON_ARM = platform.machine() == "aarch64"


def _numbers(table: str) -> dict[str, int]:
    """Reads `name x86_64/aarch64, name both, ...`."""
    rows = (row.split() for row in table.split(","))
    return {name: int(numbers.split("/")[-1 if _ON_ARM else 0]) for name, numbers in rows}


_NEVER = _numbers(  # what no process of a worker needs
    """
    ptrace 101/117, process_vm_readv 310/270, process_vm_writev 311/271, process_madvise 440, pidfd_getfd 438, kcmp 312/272,
    bpf 321/280, userfaultfd 323/282, perf_event_open 298/241, io_uring_setup 425, io_uring_enter 426, io_uring_register 427,
    add_key 248/217, request_key 249/218, keyctl 250/219, init_module 175/105, delete_module 176/106, finit_module 313/273,
    kexec_load 246/104, kexec_file_load 320/294, reboot 169/142, swapon 167/224, swapoff 168/225, settimeofday 164/170,
    clock_settime 227/112, adjtimex 159/171, clock_adjtime 305/266, sethostname 170/161, setdomainname 171/162, acct 163/89,
    syslog 103/116, quotactl 179/60, name_to_handle_at 303/264, open_by_handle_at 304/265, shmget 29/194, semget 64/190, msgget 68/186,
    mq_open 240/180, memfd_create 319/279, memfd_secret 447
    """
)
_MOUNTS = _numbers(  # what only the warden and the judge need
    """
    mount 165/40, umount2 166/39, pivot_root 155/41, chroot 161/51, move_mount 429, open_tree 428, fsopen 430, fsconfig 431,
    fsmount 432, fspick 433, mount_setattr 442, unshare 272/97, setns 308/268
    """
)
_PROGRAMS = _numbers("execve 59/221, execveat 322/281")
_CALLS = _numbers("clone 56/220, clone3 435, socket 41/198")
_X86_NEVER, _X86_FORKS = (
    (172, 173, 154, 134),
    (57, 58),
)  # iopl, ioperm, modify_ldt, uselib; fork, vfork
_NEWEST, _CLONE_THREAD, _ANY_NAMESPACE = 462, 0x10000, 0x7E020000
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: the network namespace bounds these
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    _checked(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _checked(
        _libc.mount(
            source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
        ),
        f"mount {target}",
    )


def unmount(target: str) -> None:
    _checked(_libc.umount2(target.encode(), DETACH), f"unmount {target}")


def bind(source: str, target: str, devices: bool = False) -> None:
    """Shows `source` and all that is mounted below it at `target`, read-only."""
    mount(source, target, flags=BIND | RECURSIVE)
    attributes = _ATTR_RDONLY | _ATTR_NOSUID | (0 if devices else _ATTR_NODEV)
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    _checked(
        _libc.syscall(
            _MOUNTS["mount_setattr"],
            -100,
            target.encode(),
            _AT_RECURSIVE,
            wanted,
            ctypes.c_size_t(len(wanted)),
        ),
        f"mount_setattr {target}",
    )


def pivot_root(new_root: str) -> None:
    """Makes `new_root` the root and lets go of the old one."""
    os.chdir(new_root)
    _checked(_libc.syscall(_MOUNTS["pivot_root"], b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def die_with_parent() -> None:
    _prctl(_PDEATHSIG, 9)


def hide_memory() -> None:
    """Nobody of the same uid reads this process's memory, not even through /proc."""
    _prctl(_SET_DUMPABLE, 0)


def bound_capabilities() -> None:
    """What this process and its children start from now on gains no capability, whatever its file says."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
            break


def drop_privileges(uid: int | None) -> None:
    """Gives up every capability for good and becomes `uid`, unless it is None."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _checked(_libc.capset(header, nothing), "capset")
    _prctl(_NO_NEW_PRIVS, 1)


def cpu_limit(seconds: float) -> int:
    """Returns the kernel's limit of processor time, in whole seconds.

    One second is added because the kernel counts by ticks, and also counts time that a hypervisor
    takes away.
    """
    return math.ceil(seconds) + 1


def out_of_time(status: int, usage: resource.struct_rusage, seconds: float) -> bool:
    """Returns whether the limit of processor time ended a process, from what `os.wait4` returns."""
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    # What is reported afterwards is less than what the kernel counted by ticks, on a machine whose
    # hypervisor takes time away: half of it and less was seen.
    return killed and usage.ru_utime + usage.ru_stime >= cpu_limit(seconds) / 4


def limit(
    memory: int | None, data: int | None, processes: int, file_size: int, cpu_seconds: int
) -> None:
    """Lowers the limits of this process and of its children, in bytes, processes and seconds; None leaves one alone."""
    wanted = {
        "CORE": 0,
        "NOFILE": 256,
        "FSIZE": file_size,
        "CPU": cpu_seconds,
        "NPROC": processes,
        "MEMLOCK": 0,
        "AS": memory,
        "DATA": data,
    }
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        if value is not None and (hard == resource.RLIM_INFINITY or value < hard):
            resource.setrlimit(kind, (value, value))


def seccomp(code: bytes) -> None:
    """Adds a filter to those of this process and of its children: KEYHOLE first, then one of the others."""
    if platform.machine() not in _AUDIT:
        raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
    program = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(program))
    _prctl(_NO_NEW_PRIVS, 1)
    _prctl(_SET_SECCOMP, 2, ctypes.create_string_buffer(header, len(header)))


# A filter is classic BPF over (number, architecture, arguments).
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x50000


def _assembled(rows: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join(
        struct.pack("HBBI", *row) for row in [(_LOAD, 0, 0, 0), *rows, (_ANSWER, 0, 0, _ALLOW)]
    )


def _refuse(numbers: Iterable[int], error: int = errno.EPERM) -> list[tuple[int, int, int, int]]:
    return [
        row
        for number in numbers
        for row in ((_EQUAL, 0, 1, number), (_ANSWER, 0, 0, _ERROR | error))
    ]


def _keyhole() -> bytes:
    """Refuses another architecture's calls, calls newer than this table, other socket families, and what nobody here needs."""
    rows = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT.get(platform.machine(), 0)),
        (_ANSWER, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    rows += [(_ABOVE, 0, 1, _NEWEST), (_ANSWER, 0, 0, _ERROR | errno.ENOSYS)]  # every x32 call too
    rows += _refuse(
        [_CALLS["clone3"]], errno.ENOSYS
    )  # its flags are out of a filter's sight; libc falls back to clone
    rows += _refuse([*_NEVER.values(), *(() if _ON_ARM else _X86_NEVER)])
    rows += [(_EQUAL, 0, 6, _CALLS["socket"]), (_LOAD, 0, 0, 16)]
    rows += [(_EQUAL, 3 - i, 0, family) for i, family in enumerate(_FAMILIES)]
    return _assembled(
        [*rows, (_ANSWER, 0, 0, _ERROR | errno.EAFNOSUPPORT), (_ANSWER, 0, 0, _ALLOW)]
    )


def _candidates(no_processes: bool) -> bytes:
    """Refuses mounts and namespaces; with `no_processes` also new programs and everything that is started but threads."""
    forbidden = [*_MOUNTS.values()]
    if no_processes:
        forbidden += [*_PROGRAMS.values(), *(() if _ON_ARM else _X86_FORKS)]
    flags = (_ANY_BIT, 1, 0, _CLONE_THREAD) if no_processes else (_ANY_BIT, 0, 1, _ANY_NAMESPACE)
    clone = [
        (_EQUAL, 0, 4, _CALLS["clone"]),
        (_LOAD, 0, 0, 16),
        flags,
        (_ANSWER, 0, 0, _ERROR | errno.EPERM),
        (_ANSWER, 0, 0, _ALLOW),
    ]
    return _assembled(_refuse(forbidden) + clone)


KEYHOLE, NO_MOUNTS, NO_PROCESSES = _keyhole(), _candidates(False), _candidates(True)


def _prctl(option: int, *arguments) -> None:
    values = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    _checked(_libc.prctl(option, *values, *[ctypes.c_ulong(0)] * (4 - len(values))), "prctl")


def _checked(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def close_all_but(keep: set[int]) -> None:
    """Closes every descriptor from 3 on that is not in `keep`."""
    start = 3
    for fd in [*sorted(fd for fd in keep if fd >= 3), 1 << 30]:
        os.closerange(start, fd)
        start = fd + 1


def enter_user_namespace() -> None:
    """Becomes the lord of a user namespace that knows only the caller's own uid."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
