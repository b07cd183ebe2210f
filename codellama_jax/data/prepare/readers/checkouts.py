"""Git checkouts: the name of the repository, its license, and the files that git tracks."""

from __future__ import annotations

import configparser
import os
import re
import struct
from typing import NamedTuple

from etils import epath

from codellama_jax.data.prepare.readers import licenses
from codellama_jax.data.sources import GIT_FOLDER
from codellama_jax.errors import UserError
from codellama_jax.system.files import open_file, read_file

_URL = re.compile(r"([^/:\\]+[/\\][^/:\\]+?)(\.git)?[/\\]*$")
_ENTRY = 62  # bytes of an entry of the index before the file's name
_REGULAR = 0o100000  # the type in a file's mode
_EXTENDED = 0x4000  # flag of an entry with two more bytes of flags


class Checkout(NamedTuple):
    """What git knows of a folder."""

    repository: str  # OWNER/NAME of the URL it was cloned from, otherwise the folder's name
    tracked: frozenset[str] | None  # the names of its files; None if the index cannot be read
    is_dataset: bool  # whether it was cloned from Hugging Face's data sets
    license: str  # that its license files grant, "" if unknown


def checkout_of(folder: epath.Path) -> Checkout:
    """Returns what git knows of a folder that holds `.git`."""
    git = _git_folder(folder)
    url = _origin(git)
    match = _URL.search(url)
    repository = match[1].replace("\\", "/") if match else folder.resolve().name
    return Checkout(repository, _tracked(git), "/datasets/" in url, _license(folder))


def _license(folder: epath.Path) -> str:
    """Returns the license that the license files at the top of a repository grant."""
    names = []
    for path in sorted(folder.iterdir()):
        if licenses.FILE_NAME.match(path.name):
            try:
                with open_file(path) as file:
                    # UTF-8 takes up to four bytes per character.
                    data = file.read(4 * licenses.CONSIDERED)
            except (OSError, UserError):
                continue  # a folder of licenses, or unreadable
            names.append(licenses.license_of(data.decode(errors="replace")))
    return licenses.combined(names)


def _git_folder(folder: epath.Path) -> epath.Path:
    """Returns the folder with git's files; `.git` is a file that names it in a submodule."""
    git = folder / GIT_FOLDER
    if git.is_dir():
        return git
    try:
        text = read_file(git).decode(errors="surrogateescape")
    except UserError:
        return git
    return folder / text.partition("gitdir:")[2].strip()


def _origin(git: epath.Path) -> str:
    """Returns the URL that the repository was cloned from, "" if it is unknown."""
    # git accepts a key several times and keys without a value, configparser only with these
    # options.
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    common = git / "commondir"  # of a further working tree, whose config is that of the first
    try:
        if common.exists():
            git = git / read_file(common).decode(errors="replace").strip()
        lines = read_file(git / "config").decode(errors="replace").splitlines()
        # Git indents lines, which configparser would take as the continuation of a value.
        parser.read_string("\n".join(line.strip() for line in lines))
        return parser.get('remote "origin"', "url", fallback="") or ""
    except (UserError, OSError, configparser.Error):
        return ""


def _tracked(git: epath.Path) -> frozenset[str] | None:
    """Returns the regular files of git's index, None if it is missing or of an unknown form."""
    try:
        data = read_file(git / "index")
        return frozenset(_index_names(data))
    except (UserError, ValueError, struct.error, IndexError):
        return None


def _index_names(data: bytes) -> list[str]:
    """Returns the names of the regular files in an index, see gitformat-index.

    Raises ValueError for a form that is not read: SHA-256, split and sparse indexes.
    """
    magic, version, count = struct.unpack_from(">4sII", data)
    if magic != b"DIRC" or version not in (2, 3, 4):
        raise ValueError("not an index")
    names = []
    position, name = 12, b""
    # An entry: 40 bytes of times, device, mode and size, 20 bytes of SHA-1, 2 bytes of flags, then
    # the name. All numbers are big-endian.
    for _ in range(count):
        mode = struct.unpack_from(">I", data, position + 24)[0] & 0o170000
        flags = struct.unpack_from(">H", data, position + _ENTRY - 2)[0]
        start = position + _ENTRY + (2 if flags & _EXTENDED else 0)
        if version == 4:  # a name repeats the start of the name before
            dropped, start = _offset(data, start)
            end = data.index(b"\0", start)
            name = name[: len(name) - dropped] + data[start:end]
            position = end + 1
        else:
            end = data.index(b"\0", start)
            name = data[start:end]
            position += (end - position) // 8 * 8 + 8  # padded with 1 to 8 NULs
        # The lower 12 bits of the flags hold the length of the name, or 0xFFF for a longer one.
        # With SHA-256 the fields are elsewhere, which this check notices.
        if len(name) != flags & 0xFFF and flags & 0xFFF != 0xFFF:
            raise ValueError("the length of a name is wrong: another hash or a damaged index")
        if mode == 0o040000:
            raise ValueError("a sparse index")
        if mode == _REGULAR:
            names.append(os.fsdecode(name))
    # Extensions follow the entries: "link" means that most entries are in another file.
    if data[position : position + 4] == b"link":
        raise ValueError("a split index")
    return names


def _offset(data: bytes, position: int) -> tuple[int, int]:
    """Returns a number of variable length, as in pack files, and the position after it."""
    value = data[position] & 0x7F
    while data[position] & 0x80:
        position += 1
        # Seven bits per byte; the addition makes every number have one form only.
        value = (value + 1) << 7 | data[position] & 0x7F
    return value, position + 1
