"""Document texts: source files and natural language that every machine has, or a folder of the user's own files.

A file is dropped when it is empty, not UTF-8, binary, generated or a near-duplicate of one already kept. Code counts as
generated when its first lines say so, when a line has over 1,000 characters or the mean line over 100, or when fewer than
40 % of its visible characters are letters, as in tables of data (after Codex, section 3.1; the last bound is our own).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import os
import re
import stat
import string
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

from etils import epath

from codellama_jax.errors import UserError

COUNTS = ("files", "characters", "empty", "unreadable", "not_utf8", "binary", "generated", "near_duplicates")
HEAD_LINES = 10
MAX_LINE, MAX_MEAN_LINE, MIN_LETTERS = 1000, 100, 0.4
SIMILARITY = 0.85  # of two sets of lines (Jaccard), from which on the later file is a near-duplicate

_GENERATED = re.compile(
    r"auto(matically)?[- ]?generated|@generated|do not edit|generated and used by|generated (by|from|with) \S*\w[./]\w", re.IGNORECASE
)
_LETTERS = string.ascii_letters.encode() + bytes(range(128, 256))  # any byte of a UTF-8 letter outside ASCII
_DEFINITION = re.compile(r"\n[ \t\r]*\n(?=\S)")  # a blank line that an unindented line follows
_BLANK_LINES = re.compile(r"\n([ \t\r]*\n)+")


class Item(NamedTuple):
    """Something to read: a stable name, a stamp that changes when the content does, and how to read it."""

    id: str
    stamp: str
    read: Callable[[], bytes]


class Document(NamedTuple):
    id: str
    text: str


def find(source: str) -> list[Item]:
    """Lists `stdlib`, `topics`, `descriptions` or the files of a folder (local or gs://), sorted by id, hidden files and symlinks left out.

    Raises UserError if there is nothing to read.
    """
    named = {"stdlib": _stdlib, "topics": _topics, "descriptions": _descriptions}
    items = sorted(named[source]() if source in named else _folder(source), key=lambda item: item.id)
    if not items:
        raise UserError(f"the corpus {source!r} holds no files: name a folder of text files, or one of {', '.join(named)}")
    return items


def sample(items: list[Item], max_files: int) -> list[Item]:
    """Takes `max_files` of the items, always the same ones wherever they lie in the folder; 0 takes all."""
    if not max_files or len(items) <= max_files:
        return items
    return sorted(sorted(items, key=lambda item: position(item.id))[:max_files])


def position(name: str) -> float:
    """Returns a fixed pseudo-random number in [0, 1) for a name: what splits and samples files."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def load(items: Iterable[Item], code: bool) -> tuple[list[Document], dict[str, int]]:
    """Reads what is worth keeping, in order, and counts what was kept and dropped under the names of COUNTS.

    `code` also drops generated files; prose has long lines of its own.
    """
    counts = Counter(dict.fromkeys(COUNTS, 0))
    documents = [d for d in (_read(item, code, counts) for item in items) if d]
    copies = near_duplicates([d.text for d in documents])
    kept = [d for i, d in enumerate(documents) if i not in copies]
    counts.update(near_duplicates=len(copies), files=len(kept), characters=sum(len(d.text) for d in kept))
    return kept, dict(counts)


def generated(text: str) -> bool:
    """Tells code that a program wrote, or that is mostly data, from code that people write."""
    lines = text.splitlines()
    said = _GENERATED.search("\n".join(lines[:HEAD_LINES]))
    if said or max(map(len, lines)) > MAX_LINE or len(text) > MAX_MEAN_LINE * len(lines):
        return True
    visible = "".join(text.split()).encode()
    return len(visible.translate(None, _LETTERS)) > (1 - MIN_LETTERS) * len(visible)


def near_duplicates(texts: list[str]) -> set[int]:
    """Returns the indices of texts whose set of stripped lines nearly equals that of an earlier text that was kept."""
    from datasketch import MinHash, MinHashLSH

    index, copies = MinHashLSH(threshold=SIMILARITY, num_perm=128), set()
    empty, kept = MinHash(num_perm=128, hashfunc=zlib.crc32), {}
    for i, text in enumerate(texts):
        sketch = empty.copy()
        sketch.update_batch({line.strip() for line in text.encode().splitlines()})
        if any(sketch.jaccard(kept[j]) >= SIMILARITY for j in index.query(sketch)):
            copies.add(i)
        else:
            index.insert(i, sketch)
            kept[i] = sketch
    return copies


def blocks(text: str, max_chars: int) -> list[str]:
    """Cuts a text between top-level definitions into parts of at most `max_chars` characters; a longer definition at its blank lines.

    A stretch without a blank line that is longer by itself stays whole. The parts joined are the text.
    """
    return [block for part in _cut(text, _DEFINITION, max_chars) for block in _cut(part, _BLANK_LINES, max_chars)]


def _cut(text: str, boundary: re.Pattern, max_chars: int) -> list[str]:
    parts, begin = [], 0
    ends = (m.end() for m in boundary.finditer(text) if m.end() < len(text))
    for start, end in itertools.pairwise([0, *ends, len(text)]):
        if end - begin > max_chars and start > begin:
            parts.append(text[begin:start])
            begin = start
    return [*parts, text[begin:]]


def _read(item: Item, code: bool, counts: Counter) -> Document | None:
    try:
        data = item.read()
        text = "" if b"\0" in data else data.decode()
    except OSError:
        counts["unreadable"] += 1
    except UnicodeDecodeError:
        counts["not_utf8"] += 1
    else:
        if text.strip() and not (code and generated(text)):
            return Document(item.id, text)
        counts["generated" if text.strip() else "binary" if b"\0" in data else "empty"] += 1
    return None


def _stdlib() -> Iterator[Item]:
    files = _files(sysconfig.get_paths()["stdlib"], "stdlib", skip=("site-packages", "dist-packages"))
    return (item for item in files if item.id.endswith(".py"))


def _folder(folder: str) -> Iterator[Item]:
    root = epath.Path(folder).expanduser()
    try:
        found = root.is_dir()
    except (OSError, ImportError) as error:  # epath needs another package for gs://
        raise UserError(f"cannot read the corpus {folder!r}: {error}") from error
    if not found:
        raise UserError(f"the corpus {folder!r} is not a folder: name a folder of text files, or stdlib, topics or descriptions")
    return _files(root, root.resolve().name)


def _files(root: str | os.PathLike, prefix: str, skip: tuple[str, ...] = ()) -> Iterator[Item]:
    root = epath.Path(root)
    for folder, subfolders, names in root.walk():
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skip]
        inside = PurePosixPath(prefix) / folder.relative_to(root).as_posix()
        for path in (folder / name for name in names if not name.startswith(".")):
            if stamp := _stamp(path):
                name = f"{inside / path.name}".encode(errors="backslashreplace").decode()  # names of files may be any bytes
                yield Item(name, stamp, path.read_bytes)


def _stamp(path: os.PathLike) -> str:
    # etils' own stat fails on a local file whose owner has no name, as in many containers.
    if "://" in os.fspath(path):
        found = path.stat()
        return f"{found.length}:{found.mtime}"
    found = os.lstat(path)
    return f"{found.st_size}:{found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else ""


def _topics() -> Iterator[Item]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError("this Python comes without its documentation topics: name a folder of text files instead of 'topics'") from None
    return (_text("topics", name, text) for name, text in topics.items())


def _descriptions() -> Iterator[Item]:
    found = {d.metadata["Name"]: d.metadata.get_payload() or d.metadata["Description"] for d in importlib.metadata.distributions()}
    return (_text("descriptions", name, text) for name, text in found.items() if name and text)


def _text(prefix: str, name: str, text: str) -> Item:
    data = text.encode(errors="surrogatepass")
    return Item(f"{prefix}/{name}", hashlib.sha256(data).hexdigest(), partial(bytes, data))
