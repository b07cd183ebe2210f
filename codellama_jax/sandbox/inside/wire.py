"""Messages over a pipe with a hostile end: JSON behind a length, bounded in bytes and in memory."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from typing import Any

MAX_BYTES = 64 << 20  # of one message
_VALUE_BYTES = 40  # memory of one decoded value: an entry of a list and a number
_MEMORY_SHARE = 4  # a decoded message takes at most 1/4 of the memory limit
_SMALL = 1 << 16
_MAX_DIGITS = 640  # of an integer in JSON; values.py sends longer ones in hexadecimal
_LENGTH = struct.Struct("<Q")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class WireError(Exception):
    """The other end is closed, or its message is not in the protocol."""


class TooLargeError(Exception):
    """A message exceeds MAX_BYTES."""


def send(fd: int, message: Any) -> None:
    """Writes a message. Raises TooLargeError or MemoryError before anything is written."""
    data = _to_json(message).encode()
    if len(data) > MAX_BYTES:
        raise TooLargeError(f"a value of {len(data)} bytes exceeds the limit of {MAX_BYTES} bytes")
    if not _fits(data):
        raise MemoryError(f"a value of {data.count(b',')} items exceeds its share of the memory")
    view = memoryview(_LENGTH.pack(len(data)) + data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        raise WireError("no answer") from None


def receive(fd: int) -> Any:
    """Reads a message. Raises WireError if the end is closed or the message is not acceptable."""
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size))
    if length > MAX_BYTES:
        raise WireError(f"a message of {length} bytes exceeds the limit of {MAX_BYTES} bytes")
    data = _read(fd, length)
    if not _fits(data):
        raise WireError("a message holds too many values for the memory limit")
    digits = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(_MAX_DIGITS)  # parsing an integer takes quadratic time
        return json.loads(data)
    except (ValueError, RecursionError):
        raise WireError("not a message") from None
    finally:
        sys.set_int_max_str_digits(digits)


def _fits(data: bytes) -> bool:
    """Returns whether the decoded message takes no more than its share of the memory limit."""
    if len(data) < _SMALL:
        return True
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    needed = data.count(b",") * _VALUE_BYTES + len(data)
    return limit == resource.RLIM_INFINITY or needed * _MEMORY_SHARE <= limit


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        try:
            part = os.read(fd, min(size, 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise WireError("no answer")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
