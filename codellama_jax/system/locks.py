"""One writer per folder: a lock that names its holder and is released with its process."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator

from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.console import warn
from codellama_jax.system.files import LIBRARY_ERRORS, is_bucket, reason

NAME = ".lock"  # of the lock file in a folder
WAIT_SECONDS = 0.2  # between two attempts to take a lock that another process holds
READ_SECONDS = 1.0  # a holder writes its name within this time after it has taken the lock
# Errors of a file system that has no locks, as some network file systems.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def sole_writer(folder: epath.Path, lock_file: epath.Path | None = None) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it does not exist, as long as the block runs.

    The kernel releases the lock when the process ends, however it ends, so that none is left over.
    An object store and some network file systems have no locks: there a warning is printed.

    Args:
      folder: the folder that only this process writes to, local or gs://.
      lock_file: the file to lock, for a folder that must not exist yet; `folder/.lock` by default.

    Raises UserError naming host, process and start time of the holder if the lock is held.
    """
    # A lock file on an object store would outlive a process that was killed.
    if is_bucket(folder):
        _warn_unlocked(folder, "an object store has no locks")
        yield
        return
    path = lock_file or folder / NAME
    descriptor = _acquire(folder, path)
    try:
        yield
    finally:
        if descriptor is not None:
            _release(path, descriptor)


def check_free(folder: epath.Path) -> None:
    """Raises UserError if another process writes to the folder now, or if it cannot be a folder.

    Makes no folder. For a command that prepares for long before it takes the lock.
    """
    if is_bucket(folder):
        return
    # The first start finds no folder: then its closest parent decides whether one can be made.
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"cannot make the folder {folder}: {existing} is not a folder")
    # Without a lock file nobody writes, and taking the lock would make the folder.
    if (folder / NAME).exists():
        with sole_writer(folder):
            pass


@contextlib.contextmanager
def one_after_another(folder: epath.Path, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process is in a block for the same folder, then runs the block.

    For work that the first process does for all. Where there are no locks the block runs at once,
    so it must be right without them too. Raises OSError if the lock file cannot be made.

    Args:
      folder: local or gs://; it need not exist: the lock file is beside it.
      `say`: the function that prints for which process this one waits.
    """
    descriptor, waits = None, False
    path = folder.with_name(f".{folder.name}{NAME}")
    while not is_bucket(folder) and descriptor is None:
        try:
            descriptor = _open_locked(path)
        except _HeldError as held:
            if not waits:
                say(f"{folder} is being written by {held}: waiting until it has ended")
            waits = True
            time.sleep(WAIT_SECONDS)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            break
    try:
        yield
    finally:
        if descriptor is not None:
            _release(path, descriptor)


@contextlib.contextmanager
def claimed(path: epath.Path) -> Iterator[bool]:
    """Holds a lock file in the block, if no other process holds it; yields whether it does.

    Raises OSError if the file cannot be made, or where the file system has no locks.
    """
    try:
        descriptor = _open_locked(path)
    except _HeldError:
        yield False
        return
    try:
        yield True
    finally:
        _release(path, descriptor)


def can_claim(folder: epath.Path) -> bool:
    """Returns whether `claimed` can hold locks in a folder, which exists.

    All processes get the same answer: any other error, such as a full disk, is raised as OSError.
    """
    if is_bucket(folder):
        return False
    try:
        with claimed(folder / f"{NAME}.{os.getpid()}"):
            return True
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return False


class _HeldError(Exception):
    """Another process, which the text names, holds the lock."""


def _acquire(folder: epath.Path, path: epath.Path) -> int | None:
    """Returns the descriptor that holds the lock, None where the file system has no locks."""
    try:
        return _open_locked(path)
    except _HeldError as held:
        raise UserError(
            f"{folder} is being written by {held}: wait until it has ended,"
            " stop it, or choose another folder"
        ) from None
    except LIBRARY_ERRORS as error:
        if getattr(error, "errno", None) in WITHOUT_LOCKS:
            _warn_unlocked(folder, reason(error))
            return None
        raise UserError(f"cannot lock {folder}: {path}: {reason(error)}") from error


def _open_locked(path: epath.Path) -> int:
    """Returns the descriptor that holds the lock. Raises _HeldError if another process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file
        error = os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, error, str(path.parent)) from None
    while True:
        # Not inherited by programs that this process starts: they would hold the lock too.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise _HeldError(holder) from None
        except OSError:
            os.close(descriptor)
            raise
        if _is_at(path, descriptor):
            _write_holder(descriptor)
            return descriptor
        os.close(descriptor)  # its holder has deleted the file between the two calls


def _release(path: epath.Path, descriptor: int) -> None:
    # Deleted before it is released: another process that has opened it sees that it is gone.
    if _is_at(path, descriptor):
        with contextlib.suppress(OSError):
            os.unlink(path)
    os.close(descriptor)


def _is_at(path: epath.Path, descriptor: int) -> bool:
    """Returns whether an open file is the one at `path`, which may be deleted or renamed."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _write_holder(descriptor: int) -> None:
    started = datetime.datetime.now().isoformat(" ", "seconds")
    # Another host may share the file system, where a process number alone would mislead.
    text = f"process {os.getpid()} on {socket.gethostname()} since {started}"
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int) -> str:
    """Returns who holds the lock; waits a moment for a holder that has just taken it."""
    deadline = time.monotonic() + READ_SECONDS
    while time.monotonic() < deadline:
        if text := os.pread(descriptor, 300, 0).decode(errors="replace").strip("\0\n "):
            return text
        time.sleep(0.02)
    return "another process"


def _warn_unlocked(folder: epath.Path, why: str) -> None:
    advice = "make sure that no other process writes there"
    warn(f"warning: {folder} cannot be locked ({why}): {advice}")
