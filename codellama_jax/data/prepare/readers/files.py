"""Folders of files, git checkouts among them, and the texts that every machine has."""

from __future__ import annotations

import functools
import hashlib
import os
import zlib
from collections.abc import Iterator

from codellama_jax.data import sources
from codellama_jax.data.prepare.readers.base import InputOptions, Slice, completed, text_of
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.errors import UserError
from codellama_jax.system.files import LIBRARY_ERRORS, is_bucket, open_file, reason

FILES = "files"
BUILTIN = "builtin"
BUILTINS = tuple(sources.BUILTINS)
# Deleted, private or replaced by a folder or pipe since it was listed.
UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, UserError)
MAX_FILES = 50_000  # of a slice


class Collector:
    """Collects the files below a folder into slices of at most `part_bytes` or one file."""

    def __init__(self, empty: Slice, options: InputOptions):
        """Takes a slice without files: the folder, its name and its repository."""
        self._empty = empty
        self._options = options
        self._start()

    def add(self, name: str, size: int, stamp: str) -> Iterator[Slice]:
        """Adds a file, by its name relative to the folder; yields the slice that it completes."""
        size = min(size, self._options.max_file_bytes)  # more is not read
        is_full = self._size + size > self._options.part_bytes or len(self._names) == MAX_FILES
        if self._names and is_full:
            yield from self.rest()
        self._names.append(name)
        self._size += size
        # The stamp of a slice covers the names and stamps of its files: any changed file changes
        # it.
        self._hash.update(f"{name}\0{stamp}\0".encode(errors="backslashreplace"))

    def rest(self) -> Iterator[Slice]:
        """Yields the slice of the files since the last one."""
        if self._names:
            yield self._empty._replace(
                names=packed_names(self._names), size=self._size, stamp=self._hash.hexdigest()
            )
            self._start()

    def _start(self) -> None:
        self._names: list[str] = []
        self._size = 0
        self._hash = hashlib.sha256(self._empty.stamp.encode())


def packed_names(names: list[str]) -> bytes:
    """Returns names in few bytes: a corpus may have 50 million."""
    # NUL separates the names, since no path can hold it.
    return zlib.compress(os.fsencode("\0".join(names)), 1)


def unpacked_names(data: bytes) -> list[str]:
    """Returns the names of `packed_names`."""
    return os.fsdecode(zlib.decompress(data)).split("\0")


def names_of(part: Slice) -> list[str]:
    """Returns the names of the files of a slice, none for one of a table."""
    return unpacked_names(part.names) if part.names else []


def with_names(part: Slice, names: list[str]) -> Slice:
    """Returns a slice with only these of its files, in their order in it."""
    if names == names_of(part):
        return part
    # The stamp covers the names (`fingerprint_of` reads the stamp alone): with that of all files,
    # samples of different sizes would have one fingerprint, and one cache of documents.
    digest = hashlib.sha256(part.stamp.encode())
    digest.update("\0".join(names).encode(errors="backslashreplace"))
    return part._replace(names=packed_names(names), stamp=digest.hexdigest())


def builtin_slices(source: str, name: str, options: InputOptions) -> Iterator[Slice]:
    """Yields the slices of a source that Python installs: see `sources.find`."""
    collector = Collector(Slice(BUILTIN, source, name, 0, ""), options)
    for item in sources.find(source):
        yield from collector.add(_after_prefix(item.id), item.size, item.stamp)
    yield from collector.rest()


def read_builtin(part: Slice, source: str, options: InputOptions) -> Iterator[Record | Dropped]:
    """Yields the records of texts that this machine has too.

    Raises UserError if it has not, because its Python is another one.
    """
    items = _builtin_items(part.path)
    for name in unpacked_names(part.names):
        document_id = f"{part.name}/{name}"
        if name not in items:
            other = f"{part.path} of this machine has no {name}: install the same Python"
            raise UserError(f"{other} and the same packages on all machines")
        try:
            data = items[name].read()
        except (UserError, OSError):
            yield Dropped(document_id, "unreadable")
            continue
        yield _record(data, document_id, name, Record("", "", source=source), options)


def read_files(part: Slice, source: str, options: InputOptions) -> Iterator[Record | Dropped]:
    """Yields the records of the files of a folder.

    A local file that is missing or private is dropped; the error of a disk or an object store is
    raised, because dropping a file for it would make the corpus differ between runs.
    """
    known = Record("", "", repository=part.repository, license=part.license, source=source)
    for name in unpacked_names(part.names):
        document_id = f"{part.name}/{sources.encodable(name)}"
        data = _content(f"{part.path}/{name}", options.max_file_bytes)
        if data is None:
            yield Dropped(document_id, "unreadable")
        else:
            yield _record(data, document_id, sources.encodable(name), known, options)


def _record(
    data: bytes, document_id: str, path: str, known: Record, options: InputOptions
) -> Record | Dropped:
    text = text_of(data, document_id, options)
    if isinstance(text, Dropped):
        return text
    return completed(known._replace(id=document_id, text=text, path=path), options)


def _content(path: str, max_bytes: int) -> bytes | None:
    """Returns the first `max_bytes` and one more byte of a file, None if it is unreadable."""
    try:
        with open_file(path) as file:
            # Python allocates as many bytes as it is to read.
            size = max_bytes if is_bucket(path) else os.fstat(file.fileno()).st_size
            # One byte over the limit shows that a file is too large, without reading the rest.
            return file.read(min(size, max_bytes) + 1) or b""
    except (UserError, *LIBRARY_ERRORS) as error:
        if isinstance(error, UNREADABLE) and not is_bucket(path):
            return None
        raise UserError(f"cannot read {path}: {reason(error)}") from error


@functools.cache
def _builtin_items(source: str) -> dict[str, sources.Item]:
    return {_after_prefix(item.id): item for item in sources.find(source)}


def _after_prefix(item_id: str) -> str:
    return item_id.partition("/")[2]
