"""Reads the files of an evaluation.

Benchmark data and samples, plain or gzipped, JSON or JSON lines.

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
    """A JSON value and its place: `line 3 of FILE` or `record 3 of FILE`."""

    place: str
    value: Any


class Values(NamedTuple):
    """The values of a file and how they were stored."""

    form: str  # LINES or ARRAY
    gzipped: bool
    values: list[Value]
    unfinished: str  # the text of a last line that was not written to its end


def read_bytes(path: str | os.PathLike) -> tuple[bytes, bool]:
    """Returns the content of a file, decompressed if it is gzipped, and whether it was.

    Raises UserError for what cannot be read: a pipe, a folder, a damaged or truncated gzip file.
    """
    data = read_file(path)
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

    Raises UserError naming the file and line of what is not JSON.
    """
    data, gzipped = read_bytes(path)
    name = str(path)
    page = data.lstrip().startswith(b"<")
    if page or data.startswith(GIT_LFS_POINTER) or not data.strip(b"\0 \t\r\n"):
        parse_json(data, name)  # raises, and says what the file is
    text = decode_text(data, name)
    if not only_lines and _is_one_document(text):
        document = parse_json(data, name)
        if not isinstance(document, list):
            return Values(LINES, gzipped, [Value(f"line 1 of {name}", document)], "")
        values = [Value(f"record {n} of {name}", item) for n, item in enumerate(document, 1)]
        return Values(ARRAY, gzipped, values, "")
    values, unfinished = [], ""
    for number, line, last in _lines(text):
        place = f"line {number} of {name}"
        try:
            values.append(Value(place, parse_json(line.encode(), place)))
        except UserError:
            if not last:
                raise
            unfinished = line
    return Values(LINES, gzipped, values, unfinished)


def _is_one_document(text: str) -> bool:
    """Returns whether a text is one JSON document, or a damaged array; JSON lines are neither."""
    try:
        json.loads(text)
    except RecursionError:
        return True
    except ValueError as error:
        extra = getattr(error, "msg", "").startswith("Extra data")
        return text.lstrip().startswith("[") and not extra
    return True


def _lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yields (number, line, whether it has no newline behind it) of lines that are not empty."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line, number == len(lines)
