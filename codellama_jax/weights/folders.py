"""Folders that are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system import locks
from codellama_jax.system.files import is_bucket, reason


@contextlib.contextmanager
def complete_folder(path: epath.Path) -> Iterator[epath.Path]:
    """Yields a folder next to `path` that is renamed to `path` when the block ends.

    If the block raises, the folder is deleted. Raises UserError naming `path` if it exists, if
    another process writes it, or if it cannot be written.
    """
    _check_absent(path)
    with locks.sole_writer(path, path.with_name(f".{path.name}.lock")):
        _check_absent(path)  # another process may have finished it before the lock was free
        # On the same file system, so that the rename is atomic.
        part = path.with_name(f"{path.name}.part")
        try:
            if part.exists():
                part.rmtree()  # left by a process that was killed
            part.mkdir(parents=True)
            yield part
            part.rename(path)
        except (OSError, ImportError) as error:
            raise UserError(f"cannot write {path}: {reason(error)}") from error
        finally:
            # A failure to clean up must not hide the error that is being raised.
            with contextlib.suppress(OSError, ImportError):
                if part.exists():
                    part.rmtree()


def _check_absent(path: epath.Path) -> None:
    # exists() is false for a broken symlink, which would make the rename fail at the end.
    if path.exists() or (not is_bucket(path) and os.path.lexists(path)):
        raise UserError(f"{path} exists already: name a new folder")
