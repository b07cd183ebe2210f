"""Checks the files of a folder of weights before a library opens them.

The libraries' own errors do not name the cause, such as a git-lfs pointer in place of the file.
"""

from __future__ import annotations

import os
import stat

from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import GIT_LFS_POINTER, LIBRARY_ERRORS, is_bucket, reason

HTML_STARTS = (b"<!doctype", b"<html")  # first bytes of a saved web page, in lower case
WEIGHT_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".gguf", ".h5", ".msgpack", ".index.json")


def file_names(folder: epath.Path) -> list[str]:
    """Returns the sorted names in a folder, including those of broken links.

    Raises UserError if the folder is missing, is a file, or cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        raise UserError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        allowed = "name a folder of weights, a run, or a FILE.gguf"
        raise UserError(f"{folder} is a file: {allowed}") from None
    except LIBRARY_ERRORS as error:
        raise UserError(f"cannot read the folder {folder}: {reason(error)}") from error


def check_file(path: epath.Path) -> None:
    """Checks that a file can be opened and is not a git-lfs pointer or a web page.

    Raises UserError that names the kind of file. Never waits for a pipe.
    """
    # An object store has no pipes, and reading the start of a file there takes a request.
    if is_bucket(path):
        return
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            start = os.read(descriptor, len(GIT_LFS_POINTER)) if is_regular else b""
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        state = "missing"
        if os.path.islink(path):  # as in a cache of Hugging Face whose blobs were deleted
            state = f"a link to {os.readlink(path)}, which does not exist"
        raise UserError(f"{path} is {state}: is the download complete?") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    if not is_regular:
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise UserError(f"{path} is {kind}: put the file of weights there")
    if not start:
        raise UserError(f"{path} is empty: download it again")
    if start.startswith(GIT_LFS_POINTER):
        raise UserError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull`")
    if start.lower().startswith(HTML_STARTS):
        raise UserError(f"{path} is an HTML page, not weights: download the file itself")


def unused_weights(names: list[str], used: list[str], *others: str) -> list[str]:
    """Returns the names of weight files that are not `used`.

    `others` are names that count as weight files as well, such as another layout's config.
    """
    # Only names that could hold weights are worth a warning: a README beside them is expected.
    weights = [name for name in names if name.endswith(WEIGHT_ENDINGS) or name in others]
    return [name for name in weights if name not in used]
