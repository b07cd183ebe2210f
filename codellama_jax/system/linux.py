"""Linux isolation primitives through ctypes and os, for the sandbox.

Namespaces, mounts, capabilities, resource limits and seccomp filters. Every function raises
OSError with the name of the system call if the kernel refuses. See namespaces(7), mount(2),
mount_setattr(2), capabilities(7), setrlimit(2), seccomp(2).

The processes of the sandbox import this module: it may use only the standard library.
"""

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

# CLONE_* flags of unshare(2) and setns(2).
NEWNS, NEWUTS, NEWIPC = 0x20000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
# MS_* flags of mount(2).
READ_ONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
# MNT_DETACH of umount2(2): unmounts even while files of the mount are open.
DETACH = 2
# AT_RECURSIVE and the MOUNT_ATTR_* of mount_setattr(2).
_AT_RECURSIVE, _ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 0x8000, 1, 2, 4
# AT_FDCWD: a relative path starts at the working directory.
_AT_FDCWD = -100
# PR_* options of prctl(2).
_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 4, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)

_ON_ARM = platform.machine() == "aarch64"


def _numbers(table: str) -> dict[str, int]:
    """Reads system call numbers: `name x86_64/aarch64, ...`, or `name both, ...`."""
    numbers = {}
    for entry in table.split(","):
        name, per_machine = entry.split()
        numbers[name] = int(per_machine.split("/")[-1 if _ON_ARM else 0])
    return numbers


# System calls that no process of a worker needs. Each group was, or leads to, a way out of a
# sandbox: memory of other processes, programs in the kernel, asynchronous calls that bypass a
# filter (io_uring), keys and queues that outlive a process, clocks and the machine itself.
_NEVER = _numbers(
    """
    ptrace 101/117, process_vm_readv 310/270, process_vm_writev 311/271, process_madvise 440,
    pidfd_getfd 438, kcmp 312/272,
    bpf 321/280, userfaultfd 323/282, perf_event_open 298/241,
    io_uring_setup 425, io_uring_enter 426, io_uring_register 427,
    add_key 248/217, request_key 249/218, keyctl 250/219,
    init_module 175/105, delete_module 176/106, finit_module 313/273,
    kexec_load 246/104, kexec_file_load 320/294, reboot 169/142, swapon 167/224, swapoff 168/225,
    settimeofday 164/170, clock_settime 227/112, adjtimex 159/171, clock_adjtime 305/266,
    sethostname 170/161, setdomainname 171/162, acct 163/89, syslog 103/116, quotactl 179/60,
    name_to_handle_at 303/264, open_by_handle_at 304/265,
    shmget 29/194, semget 64/190, msgget 68/186, mq_open 240/180,
    memfd_create 319/279, memfd_secret 447
    """
)
# System calls that only the supervisor and the judge need.
_MOUNTS = _numbers(
    """
    mount 165/40, umount2 166/39, pivot_root 155/41, chroot 161/51, move_mount 429, open_tree 428,
    fsopen 430, fsconfig 431, fsmount 432, fspick 433, mount_setattr 442, unshare 272/97,
    setns 308/268
    """
)
_PROGRAMS = _numbers("execve 59/221, execveat 322/281")
_CALLS = _numbers("clone 56/220, clone3 435, socket 41/198")
# aarch64 has none of these: iopl, ioperm, modify_ldt, uselib; fork, vfork.
_X86_NEVER = (172, 173, 154, 134)
_X86_FORKS = (57, 58)
_NEWEST_CALL = 462  # the newest system call that the tables above know about
_CLONE_THREAD, _ANY_NAMESPACE = 0x10000, 0x7E020000
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: the network namespace confines these
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*


def unshare(flags: int) -> None:
    """Moves this process into new namespaces; NEWPID affects only the children it forks later."""
    _check_result(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Enters the namespace of an open file of /proc/PID/ns."""
    _check_result(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mounts a file system, see mount(2).

    Args:
        source: a device, a folder to bind, or any word for a virtual file system.
        target: the folder, or for a bind mount the file, to mount on.
        kind: the type of the file system, such as tmpfs.
        flags: a sum of the MS_* constants above.
        data: options of the file system, separated by commas.
    """
    texts = [text.encode() for text in (source, target, kind)]
    result = _libc.mount(*texts, ctypes.c_ulong(flags), data.encode())
    _check_result(result, f"mount {target}")


def unmount(target: str) -> None:
    """Unmounts `target` now; open files of it stay usable."""
    _check_result(_libc.umount2(target.encode(), DETACH), f"unmount {target}")


def bind(source: str, target: str, devices: bool = False) -> None:
    """Shows `source` and all mounts below it at `target`, read-only and without setuid programs.

    `devices` allows device files to be opened.
    """
    mount(source, target, flags=BIND | RECURSIVE)
    # mount(2) makes only the top mount read-only. mount_setattr(2), since Linux 5.12, does it for
    # the mounts below it too, which an attacker could otherwise write to.
    attributes = _ATTR_RDONLY | _ATTR_NOSUID
    if not devices:
        attributes |= _ATTR_NODEV
    mount_attr = struct.pack("QQQQ", attributes, 0, 0, 0)
    result = _libc.syscall(
        _MOUNTS["mount_setattr"],
        _AT_FDCWD,
        target.encode(),
        _AT_RECURSIVE,
        mount_attr,
        ctypes.c_size_t(len(mount_attr)),
    )
    _check_result(result, f"mount_setattr {target}")


def pivot_root(new_root: str) -> None:
    """Makes the mount `new_root` the root directory and unmounts the old root."""
    os.chdir(new_root)
    # With "." for both arguments the old root ends up mounted over the new one, so the next
    # unmount of "." removes it: see the notes of pivot_root(2). chroot(2) would leave a way back.
    _check_result(_libc.syscall(_MOUNTS["pivot_root"], b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def die_with_parent() -> None:
    """Lets the kernel kill this process when the thread that forked it ends."""
    _prctl(_PDEATHSIG, int(signal.SIGKILL))


def hide_memory() -> None:
    """Keeps processes of the same uid from reading this process's memory, even through /proc."""
    _prctl(_SET_DUMPABLE, 0)


def bound_capabilities() -> None:
    """Empties the capability bounding set.

    Programs that this process and its children start from now on gain no capability, whatever
    their files grant.
    """
    for capability in range(64):
        # The first number beyond the kernel's last capability fails with EINVAL.
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
            break


def drop_privileges(uid: int | None) -> None:
    """Gives up every capability for good and becomes `uid`, unless it is None."""
    # The uid changes first: afterwards this process has no capability to change it with.
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    no_capabilities = bytes(24)
    _check_result(_libc.capset(header, no_capabilities), "capset")
    _prctl(_NO_NEW_PRIVS, 1)


def cpu_limit(seconds: float) -> int:
    """Returns the kernel's limit of processor time, rounded up to an integer number of seconds.

    One second is added because the kernel counts by ticks, and also counts time that a hypervisor
    takes away.
    """
    return math.ceil(seconds) + 1


def out_of_time(status: int, usage: resource.struct_rusage, seconds: float) -> bool:
    """Returns whether the limit of processor time ended a process.

    `status` and `usage` come from `os.wait4`; `seconds` is the argument of `cpu_limit`.
    """
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    # On a machine whose hypervisor takes time away, `usage` reports less time than the kernel
    # counted by ticks: half of it and less was observed. A quarter still excludes processes that
    # were killed for another reason early on.
    return killed and usage.ru_utime + usage.ru_stime >= cpu_limit(seconds) / 4


def limit(
    memory: int | None, data: int | None, processes: int, file_size: int, cpu_seconds: int
) -> None:
    """Lowers the resource limits of this process and of its children, see setrlimit(2).

    Args:
        memory: bytes of address space; None leaves the limit as it is.
        data: bytes of private writable memory; None leaves the limit as it is.
        processes: processes and threads of the uid.
        file_size: bytes of the largest file that may be written.
        cpu_seconds: seconds of processor time, from `cpu_limit`.
    """
    limits = {
        "CORE": 0,
        "NOFILE": 256,
        "FSIZE": file_size,
        "CPU": cpu_seconds,
        "NPROC": processes,
        "MEMLOCK": 0,
        "AS": memory,
        "DATA": data,
    }
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        # Raising a hard limit needs a capability; a stricter limit of the system stays.
        if value is not None and (hard == resource.RLIM_INFINITY or value < hard):
            resource.setrlimit(kind, (value, value))


def seccomp(code: bytes) -> None:
    """Adds a filter to those of this process and of its future children.

    `code` is BASE_FILTER, and later also NO_MOUNTS or NO_PROCESSES. Filters cannot be removed;
    the kernel runs all of them for each system call, and the strictest answer counts.
    """
    if platform.machine() not in _AUDIT:
        raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
    instructions = ctypes.create_string_buffer(code, len(code))
    sock_fprog = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(instructions))
    # Without privileges the kernel accepts a filter only with no_new_privs, so that a setuid
    # program cannot be started under a filter that confuses it.
    _prctl(_NO_NEW_PRIVS, 1)
    program = ctypes.create_string_buffer(sock_fprog, len(sock_fprog))
    _prctl(_SET_SECCOMP, _SECCOMP_MODE_FILTER, program)


# A filter is classic BPF: instructions (operation, jump if true, jump if false, operand). A jump
# counts the instructions to skip. _LOAD reads 4 bytes at an offset of `struct seccomp_data`, the
# conditions look at the loaded value, _RETURN ends the filter with an answer.
_Instruction = tuple[int, int, int, int]
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_CALL_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in `struct seccomp_data`
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x50000  # answers; _ERROR is added to an errno


def _assemble(instructions: list[_Instruction]) -> bytes:
    """Encodes a filter that loads the number of the system call, and allows it at the end."""
    complete = [(_LOAD, 0, 0, _CALL_NUMBER), *instructions, (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in complete)


def _refuse(numbers: Iterable[int], error: int = errno.EPERM) -> list[_Instruction]:
    """Returns instructions that answer these system calls with an error."""
    instructions = []
    for number in numbers:
        instructions.append((_EQUAL, 0, 1, number))
        instructions.append((_RETURN, 0, 0, _ERROR | error))
    return instructions


def _base_filter() -> bytes:
    """Returns the filter that every process of a worker is under.

    It kills calls of another architecture and refuses system calls newer than `_NEWEST_CALL`,
    other socket families than `_FAMILIES`, and the calls of `_NEVER`.
    """
    # The 32-bit calls of an x86_64 kernel have other numbers, which the tables do not cover.
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT.get(platform.machine(), 0)),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _CALL_NUMBER),
    ]
    # This also covers every x32 call: their numbers start at 2^30.
    instructions += [(_ABOVE, 0, 1, _NEWEST_CALL), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    # clone3 takes its flags through a pointer, which a filter cannot follow. For ENOSYS, libc
    # falls back to clone, whose flags are an argument.
    instructions += _refuse([_CALLS["clone3"]], errno.ENOSYS)
    instructions += _refuse(_NEVER.values())
    if not _ON_ARM:
        instructions += _refuse(_X86_NEVER)
    instructions += [(_EQUAL, 0, 6, _CALLS["socket"]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    # A family of the list jumps over the remaining comparisons and the refusal.
    for i, family in enumerate(_FAMILIES):
        instructions.append((_EQUAL, 3 - i, 0, family))
    instructions += [(_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    return _assemble(instructions)


def _candidate_filter(no_processes: bool) -> bytes:
    """Returns a filter that refuses mounts and namespaces.

    With `no_processes` it also refuses to start programs and processes; threads stay allowed.
    """
    forbidden = [*_MOUNTS.values()]
    if no_processes:
        forbidden += _PROGRAMS.values()
        if not _ON_ARM:
            forbidden += _X86_FORKS
        # clone may only start a thread.
        check_flags = (_ANY_BIT, 1, 0, _CLONE_THREAD)
    else:
        # clone may start anything that is not in a new namespace.
        check_flags = (_ANY_BIT, 0, 1, _ANY_NAMESPACE)
    check_clone = [
        (_EQUAL, 0, 4, _CALLS["clone"]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        check_flags,
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return _assemble(_refuse(forbidden) + check_clone)


BASE_FILTER = _base_filter()
NO_MOUNTS = _candidate_filter(no_processes=False)
NO_PROCESSES = _candidate_filter(no_processes=True)


def _prctl(option: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> None:
    """Calls prctl(2), which takes four arguments of the size of a register."""
    values: list[ctypes.c_ulong | ctypes.Array[ctypes.c_char]] = [ctypes.c_ulong(0)] * 4
    for i, argument in enumerate(arguments):
        values[i] = ctypes.c_ulong(argument) if isinstance(argument, int) else argument
    _check_result(_libc.prctl(option, *values), "prctl")


def _check_result(result: int, call: str) -> None:
    """Raises OSError with the name of the system call if its result is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def close_all_but(keep: set[int]) -> None:
    """Closes every file descriptor from 3 on that is not in `keep`."""
    start = 3
    kept = sorted(fd for fd in keep if fd >= 3)
    for fd in [*kept, 1 << 30]:
        os.closerange(start, fd)
        start = fd + 1


def enter_user_namespace() -> None:
    """Enters a new user namespace that maps only the caller's own uid and gid.

    The process has every capability inside this namespace, and none outside of it.
    """
    uid, gid = os.geteuid(), os.getegid()
    unshare(NEWUSER)
    # The kernel lets an ordinary user write gid_map only after setgroups is denied: dropping a
    # group could otherwise grant access to files that this group may not read.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
