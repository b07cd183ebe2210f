"""Checks of a folder of weights before a library opens its files."""

from __future__ import annotations

import os
import stat

from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import GIT_LFS_POINTER, LIBRARY_ERRORS, is_bucket, reason

HTML_STARTS = (b"<!doctype", b"<html")  # as the first bytes of a saved web page
WEIGHT_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".gguf", ".h5", ".msgpack", ".index.json")


def file_names(folder: epath.Path) -> list[str]:
    """Returns the sorted names in a folder, those of broken links too.

    Raises UserError if it is missing, no folder, or cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        raise UserError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file: name a folder of weights or a run") from None
    except LIBRARY_ERRORS as error:
        raise UserError(f"cannot read the folder {folder}: {reason(error)}") from error


def check_file(path: epath.Path) -> None:
    """Checks that a binary file can be opened and is no placeholder of the real one.

    Never waits for a pipe. Raises UserError that says what the file is instead.
    """
    if is_bucket(path):
        return
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            start = os.read(descriptor, len(GIT_LFS_POINTER)) if regular else b""
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        link = (
            f"a link to {os.readlink(path)}, which does not exist" if os.path.islink(path) else ""
        )
        raise UserError(f"{path} is {link or 'missing'}: is the download complete?") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    if not regular:
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise UserError(f"{path} is {kind}: put the file of weights there")
    if not start:
        raise UserError(f"{path} is empty: download it again")
    if start.startswith(GIT_LFS_POINTER):
        raise UserError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull`")
    if start.lower().startswith(HTML_STARTS):
        raise UserError(f"{path} is an HTML page, not weights: download the file itself")


def unused_weights(names: list[str], used: list[str], *others: str) -> list[str]:
    """Returns the files of weights among `names`, and those of `others`, that are not `used`."""
    weights = [name for name in names if name.endswith(WEIGHT_ENDINGS) or name in others]
    return [name for name in weights if name not in used]
