"""JSON lines: .jsonl in ranges of bytes, .jsonl.gz and .jsonl.zst one file at a time.

A record's id ends with the byte at which its line starts in the uncompressed file. So it does not
depend on the ranges, and a worker need not count the lines before its range.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from codellama_jax.data.prepare.readers.base import InputOptions, Slice
from codellama_jax.data.prepare.readers.columns import columns_of, record_of
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.errors import UserError
from codellama_jax.system.files import GIT_LFS_POINTER, is_bucket, open_file, reason

READER = "json_lines"
PLAIN = (".jsonl", ".ndjson")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BUFFER = 2**20
# JSON writes a character in at most 6 bytes; the other fields of a record are short.
ESCAPED = 6
OTHER_FIELDS = 2**20


def is_json_lines(name: str) -> bool:
    """Returns whether the name of a file is one of JSON lines."""
    return name.removesuffix(_compression(name)[0]).endswith(PLAIN)


def slices(file: Slice, options: InputOptions) -> Iterator[Slice]:
    """Yields the ranges of a file; a compressed file is one range.

    Raises UserError if the first record has no text.
    """
    check(file, options)
    if _compression(file.path)[1]:
        yield file
        return
    for start in range(0, file.size, options.part_bytes):
        end = min(start + options.part_bytes, file.size)
        yield file._replace(start=start, end=end, size=end - start)


def check(file: Slice, options: InputOptions) -> None:
    """Raises UserError if the first record of a file is a JSON object without text."""
    for _, line in _lines(file._replace(start=0, end=0), options):
        # A first line that is damaged or too long proves nothing about the others.
        row = _parsed(line) if line is not None else None
        if row is not None:
            columns_of(tuple(row), options, file.path)
        return


def read(part: Slice, source: str, options: InputOptions) -> Iterator[Record | Dropped]:
    """Yields the records whose lines start in the range.

    A line that is not a JSON object with text is dropped. Raises UserError if a compressed file is
    truncated or damaged.
    """
    for start, line in _lines(part, options):
        document_id = f"{part.name}#{start}"
        if line is None:
            yield Dropped(document_id, "too_large")
            continue
        if line.isspace():
            continue
        row = _parsed(line)
        if row is None:
            yield Dropped(document_id, "damaged", len(line))
            continue
        try:
            columns = columns_of(tuple(row), options, part.path)
        except UserError:  # unlike the first one, which was checked when the file was listed
            yield Dropped(document_id, "damaged", len(line))
            continue
        yield record_of(row, columns, document_id, source, options)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line, None if it is damaged."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _lines(part: Slice, options: InputOptions) -> Iterator[tuple[int, bytes | None]]:
    """Yields the lines that start in a range, each with its first byte; None for one too long."""
    limit = ESCAPED * options.max_file_bytes + OTHER_FIELDS
    with _opened(part.path) as file:
        position = part.start
        try:
            if position:
                # A line that starts before the range belongs to the range before it.
                # One byte before the range: if it is a line break, the range starts with a line,
                # which is kept.
                file.seek(position - 1)
                position += _skip_line(file) - 1
            # A line that starts in the range is read to its end, also beyond the range.
            while not part.end or position < part.end:
                # Bounded, because a file without line breaks would fill the memory.
                line = file.readline(limit)
                if not line:
                    return
                length = len(line)
                is_too_long = length == limit and not line.endswith(b"\n")
                if is_too_long:
                    length += _skip_line(file)
                yield position, None if is_too_long else line
                position += length
        except (OSError, EOFError, pa.ArrowException) as error:
            raise UserError(_damage(part.path, reason(error))) from error


def _skip_line(file: BinaryIO) -> int:
    """Reads to the end of the line; returns the number of bytes."""
    skipped = 0
    while data := file.readline(BUFFER):
        skipped += len(data)
        if data.endswith(b"\n"):
            break
    return skipped


def _opened(path: str) -> BinaryIO:
    try:
        file = open_file(path)
        compression = _compression(path)[1]
        if not compression:
            # The file of an object store may have `read` and `seek` only.
            return _buffered(pa.PythonFile(file, mode="r")) if is_bucket(path) else file
        # Unlike gzip and zstandard, pyarrow raises for both formats if the end is missing.
        return _buffered(pa.CompressedInputStream(file, compression))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


def _buffered(file: Any) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(file, BUFFER))


def _damage(path: str, problem: str) -> str:
    try:
        with open_file(path) as file:
            if file.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER:
                return f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull`"
    except OSError:
        pass
    return f"{path} is truncated or damaged ({problem}): download or write it again"


def _compression(name: str) -> tuple[str, str]:
    """Returns the ending of a compressed file's name and its format, ("", "") for others."""
    for ending, compression in COMPRESSIONS.items():
        if name.lower().endswith(ending):
            return ending, compression
    return "", ""
