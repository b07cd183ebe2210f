"""Plain data over a pipe, read from a hostile end: JSON that yields only builtin values, capped in size and depth."""

from __future__ import annotations

import builtins
import json
import os
import struct
from collections.abc import Callable
from typing import Any

MAX_BYTES = 8 << 20
MAX_DEPTH = 60
_LENGTH = struct.Struct("<Q")
_CONTAINERS = {"tuple": tuple, "set": set, "frozenset": frozenset}


class WireError(Exception):
    """The other end is gone, or says what is not in the protocol."""


def encode(value: Any, refer: Callable[[Any], int], depth: int = 0) -> Any:
    """Turns a value into JSON's own types; one that is not plain data becomes a reference, `refer(value)`.

    A subclass of a plain type goes as that type. An object with one key stands for what JSON does not have.
    """
    if depth > MAX_DEPTH:
        raise WireError("a value is nested too deep")
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value) if -(2**60) < value < 2**60 else {"int": hex(value)}  # hex has no limit of digits
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {type(value).__name__ if type(value) is bytearray else "bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [encode(item, refer, depth + 1) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[encode(k, refer, depth + 1), encode(v, refer, depth + 1)] for k, v in dict.items(value)]}
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [encode(item, refer, depth + 1) for item in kind.__iter__(value)]}
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return {"type": value.__name__}
    return {"ref": refer(value)}


def decode(value: Any, resolve: Callable[[int], Any]) -> Any:
    """The inverse of `encode`; `answer` says what it may raise for what `encode` does not write."""
    if isinstance(value, list):
        return [decode(item, resolve) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise WireError("not a value")
    [(name, inner)] = value.items()
    if name in _CONTAINERS:
        return _CONTAINERS[name](decode(item, resolve) for item in inner)
    if name == "dict":
        return {decode(k, resolve): decode(v, resolve) for k, v in inner}
    if name == "ref":
        return resolve(int(inner))
    if name == "int":
        return int(inner, 16)
    if name == "type" and isinstance(kind := getattr(builtins, inner), type):
        return kind
    if name in ("bytes", "bytearray"):
        return (bytes if name == "bytes" else bytearray).fromhex(inner)
    if name == "complex":
        return complex(float(inner[0]), float(inner[1]))
    raise WireError("not a value")


def send(fd: int, message: Any) -> None:
    data = json.dumps(message).encode()
    if len(data) > MAX_BYTES:
        raise WireError(f"a value of {len(data)} bytes is too large")
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def receive(fd: int) -> Any:
    """Raises WireError for an end that is closed, a message too large or not JSON."""
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size))
    if length > MAX_BYTES:
        raise WireError(f"a value of {length} bytes is too large")
    try:
        return json.loads(_read(fd, length))
    except (ValueError, RecursionError):
        raise WireError("not a message") from None


def answer(fd: int, resolve: Callable[[int], Any]) -> tuple[bool, Any]:
    """Receives (True, value) or (False, [name, text] of an exception). Raises WireError for anything else."""
    try:
        good, value = decode(receive(fd), resolve)
        if good is not True:
            value = [str(part) for part in value][:2]
            _, _ = value
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError):
        raise WireError("not a value") from None
    return good is True, value


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise WireError("no answer")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
