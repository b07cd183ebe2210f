"""Sends and receives messages over a pipe whose other end may be hostile.

A message is JSON, preceded by its length in bytes (8 bytes, little-endian). Its size is bounded in
bytes and in the memory of its decoded values.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from typing import Any

MAX_BYTES = 64 << 20  # of one message
# Bytes of memory of one decoded value: an entry of a list, and a number.
_VALUE_BYTES = 40
# A decoded message may use 1/4 of the memory limit.
_MEMORY_SHARE = 4
# Messages below this size, in bytes, always fit.
_SMALL = 1 << 16
# Digits of an integer in JSON; values.py sends longer ones in hexadecimal.
_MAX_DIGITS = 640
_LENGTH = struct.Struct("<Q")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class WireError(Exception):
    """The other end is closed, or its message violates the protocol."""


class TooLargeError(Exception):
    """A message exceeds MAX_BYTES."""


def send(fd: int, message: Any) -> None:
    """Writes a message.

    Raises TooLargeError or MemoryError before anything is written, and WireError if the other end
    is closed.
    """
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
    """Reads a message.

    Raises WireError if the other end is closed or the message is not acceptable.
    """
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size))
    if length > MAX_BYTES:
        raise WireError(f"a message of {length} bytes exceeds the limit of {MAX_BYTES} bytes")
    # The length is checked before anything of this size is allocated, and the number of values
    # before they are decoded: a short message can decode to many small objects.
    data = _read(fd, length)
    if not _fits(data):
        raise WireError("a message holds too many values for the memory limit")
    digits = sys.get_int_max_str_digits()
    try:
        # Parsing a decimal integer takes time quadratic in its digits.
        sys.set_int_max_str_digits(_MAX_DIGITS)
        return json.loads(data)
    except (ValueError, RecursionError):
        raise WireError("not a message") from None
    finally:
        sys.set_int_max_str_digits(digits)


def _fits(data: bytes) -> bool:
    """Returns whether the decoded message uses at most its share of the memory limit."""
    if len(data) < _SMALL:
        return True
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    # Every value but the first of a list follows a comma.
    needed = data.count(b",") * _VALUE_BYTES + len(data)
    return limit == resource.RLIM_INFINITY or needed * _MEMORY_SHARE <= limit


def _read(fd: int, size: int) -> bytes:
    """Reads exactly `size` bytes."""
    parts = []
    while size:
        try:
            part = os.read(fd, min(size, 1 << 20))
        except OSError:
            part = b""
        # An empty read is the end of the pipe: no process has the other end open any more.
        if not part:
            raise WireError("no answer")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
