"""Paths that a user names, and files that are read with checks or written completely or not at all.

Every path from a user goes through `user_path`, every state file is written by `write_file`, and
every JSON file that the project did not just write itself is read by `read_json`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import stat
import uuid
from typing import Any, BinaryIO

from etils import epath

from codellama_jax.errors import UserError

GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
BUCKET_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
MAX_PATH = 4095  # bytes, on Linux
LIBRARY_ERRORS = (OSError, ImportError, ValueError)  # epath: ImportError without a cloud package


def is_bucket(path: str | os.PathLike) -> bool:
    """Returns whether a path names an object store, as gs://bucket/folder does."""
    return "://" in os.fspath(path)


def user_path(text: str | os.PathLike) -> epath.Path:
    """Returns a path that the user named: `~` expanded, absolute where it is local.

    Raises UserError for an empty path, one that no file can have, an unknown scheme, or an object
    store whose package is not installed.
    """
    path = os.fspath(text)
    if not path or "\0" in path or not _is_encodable(path):
        raise UserError(f"the path {path!a} is not valid: give the name of a file or folder")
    # epath would keep `~`, and a relative path would change its meaning with the current folder.
    if not is_bucket(path):
        local = os.path.abspath(os.path.expanduser(path))
        if len(os.fsencode(local)) > MAX_PATH:
            length = f"{len(path):,} characters"
            raise UserError(f"the path {path[:60]!r}... ({length}) is too long: shorten it")
        return epath.Path(local)
    _check_installed(path)
    try:
        return epath.Path(path)
    except (KeyError, *LIBRARY_ERRORS):
        scheme = path.partition("://")[0]
        message = f"the path {path!r} has the unknown scheme {scheme!r}: use a local path or gs://"
        raise UserError(message) from None


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _check_installed(path: str) -> None:
    """Raises UserError if the package that reads the path's object store is not installed."""
    package = BUCKET_PACKAGES.get(path.partition("://")[0], "")
    names = (package, "tensorflow")  # either is enough for etils
    if package and not any(importlib.util.find_spec(name) for name in names):
        raise UserError(f"the path {path!r} needs the package {package}: pip install {package}")


def reason(error: BaseException) -> str:
    """Returns the first line of an error of the operating system or a library."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def write_file(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes a complete file or leaves the old one: writes beside it, flushes to disk, renames.

    Several processes may write the same file at once; one of them wins. The file's permissions
    follow the umask. On an object store a plain write is already atomic.

    Raises UserError naming the path where that fails.
    """
    target = epath.Path(path)
    content = data.encode() if isinstance(data, str) else data
    # Not the complete name: a name that is as long as the file system allows has a temporary too.
    temporary = target.with_name(f".{target.name[:30]}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_bucket(path):
            target.write_bytes(content)
            return
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            # Without it a power loss after the rename could leave an empty file under the name.
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except LIBRARY_ERRORS as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def _flush_folder(folder: epath.Path) -> None:
    """Makes a rename in the folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as JSON, completely or not at all. Raises UserError like `write_file`."""
    write_file(path, json.dumps(value, indent=1))


def read_file(path: str | os.PathLike) -> bytes:
    """Returns the bytes of a regular file; never waits for a pipe.

    Raises UserError if it is missing, a folder, a pipe or device, or cannot be read.
    """
    try:
        with open_file(path) as file:
            return file.read() or b""
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a file") from None
    except LIBRARY_ERRORS as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file to read its bytes; never waits for a pipe.

    Raises UserError for a pipe or device, OSError for what is missing or cannot be opened.
    """
    if is_bucket(path):
        return epath.Path(path).open("rb")
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise UserError(f"{path} is not a regular file: name a file")
    # O_NONBLOCK: a file may become a FIFO after the check, and opening one waits for ever.
    return open(path, "rb", opener=_open_without_waiting)


def check_not_root(folder: str | os.PathLike, name: str) -> None:
    """Raises UserError for a folder, called `name`, that is the complete local file system.

    Listing it takes minutes and reads files of the system that never end.
    """
    if not is_bucket(folder) and os.path.realpath(folder) == os.path.abspath(os.sep):
        raise UserError(f"{name} is the complete file system: name a folder inside it")


def check_no_pipes(folder: str | os.PathLike) -> None:
    """Raises UserError for a pipe, socket or device under a local folder.

    Libraries that open the files of the folder themselves would wait for it for ever.
    """
    if is_bucket(folder):
        return
    for parent, _, names in os.walk(os.fspath(folder)):
        for name in names:
            path = os.path.join(parent, name)
            # A file that is missing or cannot be read is reported by the library.
            with contextlib.suppress(OSError):
                mode = os.stat(path).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise UserError(f"{path} is not a regular file: remove it")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def decode_text(data: bytes, name: str) -> str:
    """Returns text from UTF-8, or from UTF-16 with a byte order mark; the mark is removed.

    Raises UserError naming the first byte that is not valid.
    """
    if data.startswith(GZIP_MAGIC):
        raise UserError(f"{name} is a gzip file, not text: decompress it with gunzip")
    encoding = "utf-8"
    for mark, marked_encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            encoding = marked_encoding
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {data[error.start]:#04x}"
        raise UserError(f"{name} is not {encoding} text: {byte}") from None


def parse_json(data: bytes, name: str) -> Any:
    """Returns the value of a JSON document.

    Raises UserError that names the actual format where it recognises another one.
    """
    if data.startswith(GIT_LFS_POINTER):
        raise UserError(f"{name} is a git-lfs pointer, not the file itself: run `git lfs pull`")
    # A power loss leaves the blocks of a file full of NUL characters.
    if not data.strip(b"\0 \t\r\n"):
        raise UserError(f"{name} is empty")
    text = decode_text(data, name)
    if text.lstrip().startswith("<"):
        raise UserError(f"{name} is an HTML or XML page, not JSON: download the file itself")
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{name} is nested too deeply to be read") from None
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON: {error}") from None


def read_json(path: str | os.PathLike) -> Any:
    """Returns the value of a JSON file. Raises UserError like `read_file` and `parse_json`."""
    return parse_json(read_file(path), str(path))


def read_state(path: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the JSON object of a state file that can be made again: None if missing or damaged.

    A power loss or a kill leaves a file empty, half written or full of NUL characters.
    """
    try:
        value = read_json(path)
    except UserError:
        return None
    return value if isinstance(value, dict) else None


def delete_file(path: str | os.PathLike) -> None:
    """Deletes a file if it exists. Raises UserError naming the path where that fails."""
    try:
        if is_bucket(path):
            epath.Path(path).unlink(missing_ok=True)
        else:
            os.unlink(path)  # epath's also deletes folders, with their contents
    except FileNotFoundError:
        pass
    except LIBRARY_ERRORS as error:
        raise UserError(f"cannot delete {path}: {reason(error)}") from error
