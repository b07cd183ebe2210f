"""Writes and verifies SHA-256 checksums of the files of a folder of weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator

from etils import epath

from codellama_jax.errors import UserError, some
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.files import LIBRARY_ERRORS, open_file, reason, write_json
from codellama_jax.system.progress import counted
from codellama_jax.system.settings import read_settings

NAME = "checksums.json"  # {"algorithm": "sha256", "files": {name in the folder: checksum}}
CHUNK = 2**22  # bytes per read


def write_checksums(folder: epath.Path) -> None:
    """Writes the checksum of every file in a folder and its subfolders. Reads each file once."""
    paths = sorted(_files(folder))
    total = sum(path.stat().length for path in paths)
    checksums = {}
    with counted("checksums", total, unit="bytes", quiet=not is_first()) as advance:
        for path in paths:
            checksums[path.relative_to(folder).as_posix()] = _sha256(path, advance)
    write_json(folder / NAME, {"algorithm": "sha256", "files": checksums})


def verify(folder: epath.Path) -> int:
    """Compares the files of a folder with its checksums. Returns the number of files.

    Raises UserError naming the files that are missing or differ, and if there are no checksums.
    """
    checksums = _read_checksums(folder)
    paths = {name: folder / name for name in checksums}
    # Before any checksum: reading all files of a large model takes minutes.
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        raise UserError(f"{folder} lacks {some(missing)}, listed in {NAME}: copy the folder again")
    damaged = []
    total = sum(path.stat().length for path in paths.values())
    with counted("verifying", total, unit="bytes", quiet=not is_first()) as advance:
        for name, path in paths.items():
            # All damaged files are named together, so that one copy replaces them.
            if _sha256(path, advance) != checksums[name]:
                damaged.append(name)
    if damaged:
        fix = "the files are damaged or were changed; copy or export them again"
        raise UserError(f"{folder}: checksums of {some(damaged)} do not match {NAME}: {fix}")
    return len(checksums)


def _read_checksums(folder: epath.Path) -> dict[str, str]:
    """Returns the checksums by file name. Raises UserError for a file of another form."""
    if not (folder / NAME).exists():
        fix = "import and export write it with --integrity"
        raise UserError(f"{folder} has no {NAME}: {fix}")
    settings = read_settings(folder / NAME)
    if settings.values.get("algorithm") != "sha256":
        raise settings.error("algorithm", "'sha256'")
    checksums = settings.inner("files").values
    if not checksums:
        raise settings.error("files", "an object of file names and checksums")
    for name, checksum in checksums.items():
        path = epath.Path(name)
        is_checksum = isinstance(checksum, str) and re.fullmatch("[0-9a-f]{64}", checksum)
        # A path that leads out of the folder would make `verify` read any file of the machine.
        is_inside = name and not path.is_absolute() and ".." not in path.parts
        if not is_checksum or not is_inside:
            allowed = "a path inside the folder and 64 hexadecimal digits"
            raise UserError(f"{folder / NAME}: the entry {name[:100]!r} must be {allowed}")
    return checksums


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    # epath's glob refuses patterns that enter subfolders.
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _sha256(path: epath.Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with open_file(path) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                advance(len(chunk))
    except LIBRARY_ERRORS as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    return digest.hexdigest()
