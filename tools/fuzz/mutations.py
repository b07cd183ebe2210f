"""Makes faults in files and values like those of users, editors, downloads and storage."""

from __future__ import annotations

import copy
import gzip
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = 100_000  # nested brackets, more than Python's recursion limit
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
HTML = b"<!DOCTYPE html>\n<html><body>404</body></html>\n"
# Numbers, texts and other values at the limits of types, file systems and terminals.
NUMBERS = [0, 1, -1, 2, 7, 0.5, 1.5, -0.0, 1e-320, 1e308, 10**12, -(10**12), 2**31, 2**63, 10**400]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
TEXTS = ["", " ", "x", "0", "-1", "nan", "true", "null", "\0", "\n", "a\nb", "\ud800", "\ufeff"]
TEXTS += ["é", "日本", "\u202e", "\x1b[31m", "../..", "/", "~", ".", "a" * 5000, "a/" * 3000]
TEXTS += [
    "%s{}",
    "gs://bucket/file",
    "ftp://host/x",
    "file:///etc",
    "[bold]",
    "1e400",
    "0x10",
    "1_000",
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"a": None}, [1, "a", {}], {"": ""}]
# Names that a file system allows and that programs often do not expect.
NAMES = ["é.py", "日本.py", "a b.py", "-x.py", "[a].py", "%s.py", "a\nb.py", "\udcff.py", "~.py"]
NAMES += ["a" * 250 + ".py", "con.txt", "x.PY", ".py", "a'b\"c.py", "{x}.py", "#.py", "\u202e.py"]


def value(rng: Random, depth: int = 0) -> Any:
    """Returns a JSON value that is almost never valid."""
    # Mostly a single wrong value; deep nesting is rare, because it all fails in one way.
    kind = rng.random()
    if depth > 2 or kind < 0.9:
        # A copy, because `mutate` changes values of a document in place.
        kinds: list[list[Any]] = [NUMBERS, TEXTS, OTHERS]
        return copy.deepcopy(rng.choice(rng.choice(kinds)))
    items = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return items if kind < 0.95 else {f"key{n}": item for n, item in enumerate(items)}


def containers(document: Any) -> list[Any]:
    """Returns all nonempty dicts and lists of a JSON document, including the document itself."""
    nonempty, waiting = [], [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict | list) and item:
            nonempty.append(item)
            waiting += item.values() if isinstance(item, dict) else item
    return nonempty


def mutate(rng: Random, document: Any, least: int = 0, most: int = 3) -> Any:
    """Returns a JSON document with `least` to `most` changed values, names or items."""
    # A deep copy in the form in which the file would have it.
    changed = json.loads(json.dumps(document))
    for _ in range(rng.randint(least, most)):
        # Collected again for each change, since a change may add or remove containers.
        places = containers(changed)
        if not places:
            return value(rng)
        place = rng.choice(places)
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        kind = rng.random()
        if kind < 0.7:
            place[key] = value(rng)
        elif kind < 0.8:
            del place[key]
        elif kind < 0.85:
            place[key] = [place[key]]
        elif isinstance(place, dict):
            # The value under another name: a key that is missing and one that is unknown at once.
            place[rng.choice([*TEXTS, "name", "at", str(key)[:-1]])] = place[key]
        else:
            place.append(place[key])
    return changed if rng.random() < 0.99 else value(rng)


def json_bytes(rng: Random, document: Any) -> bytes:
    """Returns a document as JSON, sometimes with a fault in the syntax or the bytes."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.9)
    kind = rng.random()
    if kind < 0.04:
        # More digits than Python converts to an integer by default.
        text = re.sub(r"\d+", "1" + "0" * 5000, text, count=1)
    elif kind < 0.08:
        text = re.sub(r'\{("[^"]*":)', r"{\1 5, \1", text, count=1)  # one name twice
    elif kind < 0.1:
        text = re.sub(r"([:,])", r"\1" + "[" * DEEP, text, count=1)
    data = text.encode(errors="surrogatepass")
    return damaged(rng, data) if kind > 0.85 else data


def damaged(rng: Random, data: bytes) -> bytes:
    """Returns the content of a file with one fault, chosen from DAMAGES."""
    return rng.choice(DAMAGES)(rng, data)


def _flipped(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    # One bit is the fault of a disk or a memory; several make the damage visible earlier.
    for _ in range(rng.choice([1, 1, 3, 20])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncated(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _truncated_to_zeros(rng: Random, data: bytes) -> bytes:
    kept = _truncated(rng, data)
    # As after a crash, when a file system has recorded a size but not the data.
    return kept + b"\0" * (len(data) - len(kept))


def _inserted(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    # Among them bytes of UTF-16, and a surrogate in UTF-8, which is never valid.
    new = [rng.randbytes(3), b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b'"', b"9" * 5000]
    return data[:place] + rng.choice(new) + data[place:]


def _removed(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[place + rng.randrange(1, 40) :]


def _repeated(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[place : place + 50] * rng.randrange(2, 9) + data[place:]


def _compressed(rng: Random, data: bytes) -> bytes:
    # mtime=0, so that the same input number gives the same bytes.
    packed = gzip.compress(data, mtime=0)
    return rng.choice([packed, packed[: rng.randrange(len(packed))], _flipped(rng, packed)])


def _encoded(rng: Random, data: bytes) -> bytes:
    text = data.decode(errors="replace")
    return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"]))


def _replaced(rng: Random, data: bytes) -> bytes:
    del data  # all functions of DAMAGES have the same arguments
    others = [b"", b"\0" * 500, b"\n", LFS_POINTER, HTML, b"5", b"{}", b"[]", b"null"]
    return rng.choice([*others, b"[" * DEEP])


def _other_lines(rng: Random, data: bytes) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\n\0", b"\x0b"]))


DAMAGES: list[Callable[[Random, bytes], bytes]] = [
    _flipped,
    _truncated,
    _truncated_to_zeros,
    _inserted,
    _removed,
    _repeated,
    _compressed,
    _encoded,
    _replaced,
    _other_lines,
]


def replace_file(rng: Random, path: Path) -> None:
    """Removes a file or folder, or replaces it by a folder, pipe, link, socket or another file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind = rng.randrange(9)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path)  # a loop
    elif kind == 3:
        path.symlink_to("nowhere")
    elif kind == 4:
        # Files without an end, folders and devices: a reader must not wait or fill the memory.
        path.symlink_to(rng.choice(["/dev/null", "/dev/zero", "/", "..", "."]))
    elif kind == 5:
        _socket(path)
    elif kind == 6:
        # Without permissions; it makes no difference to root.
        path.write_bytes(b"x")
        path.chmod(0)
    elif kind == 7:
        path.write_bytes(damaged(rng, b"x"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(str(path))
        except OSError:  # longer than the name of a socket may be
            path.mkdir()


def document_of(data: bytes) -> Any:
    """Returns the value of a JSON text, {} if it is damaged."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return {}


def damage_file(rng: Random, path: Path) -> None:
    """Damages a file: the values of its JSON, its bytes, or by `replace_file`."""
    kind = rng.random()
    if kind < 0.15:
        replace_file(rng, path)
        return
    if not path.is_file():
        return
    data = path.read_bytes()
    if kind < 0.75 and path.suffix == ".json":
        path.write_bytes(json_bytes(rng, mutate(rng, document_of(data), least=1)))
    else:
        path.write_bytes(damaged(rng, data))
