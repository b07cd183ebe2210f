"""Reads files of JSON values: plain or gzipped, JSON arrays or JSON lines.

Imports neither JAX nor Flax, so that a faulty file is reported at once.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from codellama_jax.errors import UserError
from codellama_jax.system.files import (
    GIT_LFS_POINTER,
    GZIP_MAGIC,
    decode_text,
    parse_json,
    read_file,
    reason,
)

LINES, ARRAY = "JSON lines", "a JSON array"


class Value(NamedTuple):
    """A JSON value and its place for messages: `line 3 of FILE` or `record 3 of FILE`."""

    place: str
    value: Any


class Values(NamedTuple):
    """The values of a file, and how they were stored.

    Attributes:
        form: LINES or ARRAY.
        gzipped: whether the file was gzipped.
        values: in the order of the file.
        unfinished: the text of a last line that was not written to its end, or "".
    """

    form: str
    gzipped: bool
    values: list[Value]
    unfinished: str


def read_bytes(path: str | os.PathLike) -> tuple[bytes, bool]:
    """Returns the content of a file, decompressed if it is gzipped, and whether it was.

    Raises UserError for a pipe, a folder, and a damaged or truncated gzip file.
    """
    data = read_file(path)
    # By content: downloads often lose the ending .gz, or keep it after unpacking.
    if not data.startswith(GZIP_MAGIC):
        return data, False
    try:
        return gzip.decompress(data), True
    except EOFError:
        raise UserError(f"{path} is a truncated gzip file: copy or download it again") from None
    except (OSError, zlib.error) as error:
        message = f"{path} is a damaged gzip file ({reason(error)}): download it again"
        raise UserError(message) from None


def read_values(path: str | os.PathLike, only_lines: bool = False) -> Values:
    """Reads JSON lines or, unless `only_lines`, the items of a JSON array.

    Raises UserError naming the file and line of the first text that is not JSON.
    """
    data, gzipped = read_bytes(path)
    name = str(path)
    is_web_page = data.lstrip().startswith(b"<")
    is_empty = not data.strip(b"\0 \t\r\n")
    if is_web_page or is_empty or data.startswith(GIT_LFS_POINTER):
        # This raises an error that names the kind of file instead of its first line.
        parse_json(data, name)
    text = decode_text(data, name)
    if not only_lines and _is_one_document(text):
        document = parse_json(data, name)
        # A file of one line is also one JSON document.
        if not isinstance(document, list):
            return Values(LINES, gzipped, [Value(f"line 1 of {name}", document)], "")
        values = [Value(f"record {n} of {name}", item) for n, item in enumerate(document, 1)]
        return Values(ARRAY, gzipped, values, "")
    values, unfinished = [], ""
    for number, line, is_last in _lines(text):
        place = f"line {number} of {name}"
        try:
            values.append(Value(place, parse_json(line.encode(), place)))
        except UserError:
            # A process that was killed while it wrote leaves such a line. The caller decides.
            if not is_last:
                raise
            unfinished = line
    return Values(LINES, gzipped, values, unfinished)


def _is_one_document(text: str) -> bool:
    """Returns whether a text is one JSON document, or a damaged JSON array, and no JSON lines."""
    try:
        json.loads(text)
    except RecursionError:
        # It is nested too deeply, which the caller's parser reports.
        return True
    except ValueError as error:
        # JSON lines whose values are arrays also start with "[", but fail after the first line.
        is_several_values = getattr(error, "msg", "").startswith("Extra data")
        return text.lstrip().startswith("[") and not is_several_values
    return True


def _lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yields (number, line, whether no newline follows it) of the lines that are not empty."""
    # Not splitlines(): it also splits at characters that JSON strings may hold.
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line, number == len(lines)
