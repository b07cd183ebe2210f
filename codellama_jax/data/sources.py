"""Document texts: source files and natural language of this machine, or a folder of files.

A file is dropped when it is empty, not UTF-8, binary, generated or a near-duplicate of a kept one.
Code counts as generated when a marker in its first lines says so, when a line has over 1,000
characters or the mean line over 100, or when fewer than 40 % of its visible characters are letters,
as in tables of data (after Codex, section 3.1; the last bound is our own).
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
from codellama_jax.system.files import check_not_root, is_bucket, read_file, reason, user_path

COUNTS = (
    "files",
    "characters",
    "empty",
    "unreadable",
    "not_utf8",
    "binary",
    "generated",
    "near_duplicates",
)
FORMATS = {  # files that hold texts in a form that is not read
    ".parquet": "parquet tables",
    ".arrow": "Arrow tables",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".ipynb": "notebooks",
    ".gz": "compressed",
    ".bz2": "compressed",
    ".xz": "compressed",
    ".zst": "compressed",
    ".zip": "archives",
    ".tar": "archives",
    ".tgz": "archives",
    ".pdf": "PDF",
}
WHAT_IS_READ = (
    "a corpus is a folder of plain text files in UTF-8, such as .py or .md, one document per file: "
    "write the texts of tables, JSON lines, notebooks and archives to such files"
)
HEAD_LINES = 10
MAX_LINE, MAX_MEAN_LINE, MIN_LETTERS = 1000, 100, 0.4
SIMILARITY = 0.85  # Jaccard index of two sets of lines that makes the later file a near-duplicate

_GENERATED = re.compile(
    r"auto(matically)?[- ]?generated|@generated|do not edit|generated and used by"
    r"|generated (by|from|with) \S*\w[./]\w",
    re.IGNORECASE,
)
# With any byte of a UTF-8 letter outside ASCII.
_LETTERS = string.ascii_letters.encode() + bytes(range(128, 256))
_DEFINITION = re.compile(r"\n[ \t\r]*\n(?=\S)")  # a blank line that an unindented line follows
_BLANK_LINES = re.compile(r"\n([ \t\r]*\n)+")


class Item(NamedTuple):
    """Something to read: a stable name, a stamp that changes with the content, and how to read it."""

    id: str
    stamp: str
    read: Callable[[], bytes]


class Document(NamedTuple):
    """A text that is kept, and where it comes from."""

    id: str
    text: str


class Dropped(NamedTuple):
    """A file that is not kept: its name in COUNTS, and the reason for a person."""

    kind: str
    reason: str


class Loaded(NamedTuple):
    """What `load` kept and why it dropped the rest."""

    documents: list[Document]
    counts: dict[str, int]  # by the names of COUNTS
    dropped: dict[str, list[str]]  # ids of the dropped items by reason

    def reasons(self) -> str:
        """Returns how many files were dropped for each reason, most first, naming one of each."""
        by_size = sorted(self.dropped.items(), key=lambda item: -len(item[1]))
        return "; ".join(f"{len(ids):,} {why} (first: {ids[0]})" for why, ids in by_size)


def find(source: str) -> list[Item]:
    """Lists `stdlib`, `topics`, `descriptions` or the files of a folder (local or gs://).

    Items are sorted by id. Hidden files, symlinks and what is no regular file are left out.

    Raises UserError if there is nothing to read.
    """
    named = {"stdlib": _stdlib, "topics": _topics, "descriptions": _descriptions}
    listed = named[source]() if source in named else _folder(source)
    items = sorted(listed, key=lambda item: item.id)
    if not items:
        names = ", ".join(named)
        fix = f"name a folder of text files, or one of {names}"
        raise UserError(f"the corpus {source!r} holds no files: {fix}")
    return items


def sample(items: list[Item], max_files: int) -> list[Item]:
    """Takes `max_files` of the items, the same ones wherever the folder is; 0 takes all."""
    if not max_files or len(items) <= max_files:
        return items
    return sorted(sorted(items, key=lambda item: position(item.id))[:max_files])


def position(name: str) -> float:
    """Returns a fixed pseudo-random number in [0, 1) for a name: what splits and samples files."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def load(items: Iterable[Item], code: bool) -> Loaded:
    """Reads what is worth keeping, in order, and counts what was kept and dropped.

    `code` also drops generated files; prose has long lines of its own.
    """
    counts = Counter(dict.fromkeys(COUNTS, 0))
    dropped: dict[str, list[str]] = {}
    documents = []
    for item in items:
        read = _read(item, code)
        if isinstance(read, Document):
            documents.append(read)
        else:
            counts[read.kind] += 1
            dropped.setdefault(_named_format(item.id) or read.reason, []).append(item.id)
    copies = near_duplicates([d.text for d in documents])
    kept = [d for i, d in enumerate(documents) if i not in copies]
    if copies:
        dropped["nearly equal to another file"] = [documents[i].id for i in sorted(copies)]
    characters = sum(len(d.text) for d in kept)
    counts.update(near_duplicates=len(copies), files=len(kept), characters=characters)
    return Loaded(kept, dict(counts), dropped)


def generated(text: str) -> bool:
    """Tells code that a program wrote, or that is mostly data, from code that people write."""
    return bool(_why_generated(text))


def _why_generated(text: str) -> str:
    """Returns the reason for which code counts as generated; "" for code that people write."""
    lines = text.splitlines()
    if _GENERATED.search("\n".join(lines[:HEAD_LINES])):
        return "marked as generated"
    if max(map(len, lines)) > MAX_LINE:
        return f"with a line over {MAX_LINE:,} characters"
    if len(text) > MAX_MEAN_LINE * len(lines):
        return f"with lines over {MAX_MEAN_LINE} characters on average"
    visible = "".join(text.split()).encode()
    if len(visible.translate(None, _LETTERS)) > (1 - MIN_LETTERS) * len(visible):
        return f"of data: under {MIN_LETTERS:.0%} of its visible characters are letters"
    return ""


def _named_format(name: str) -> str:
    return FORMATS.get(PurePosixPath(name).suffix.lower(), "")


def near_duplicates(texts: list[str]) -> set[int]:
    """Returns the indices of texts whose set of stripped lines nearly equals an earlier text's."""
    from datasketch import MinHash, MinHashLSH

    index, copies = MinHashLSH(threshold=SIMILARITY, num_perm=128), set()
    kept: dict[int, MinHash] = {}
    empty = MinHash(num_perm=128, hashfunc=zlib.crc32)
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
    """Splits a text between top-level definitions into parts of at most `max_chars` characters.

    A longer definition is split at its blank lines. A stretch without a blank line that is longer
    by itself stays in one part. The parts joined are the text.
    """
    parts = []
    for definitions in _split(text, _DEFINITION, max_chars):
        parts += _split(definitions, _BLANK_LINES, max_chars)
    return parts


def _split(text: str, boundary: re.Pattern, max_chars: int) -> list[str]:
    parts, begin = [], 0
    ends = (m.end() for m in boundary.finditer(text) if m.end() < len(text))
    for start, end in itertools.pairwise([0, *ends, len(text)]):
        if end - begin > max_chars and start > begin:
            parts.append(text[begin:start])
            begin = start
    return [*parts, text[begin:]]


def _read(item: Item, code: bool) -> Document | Dropped:
    try:
        data = item.read()
        text = "" if b"\0" in data else data.decode()
    except (OSError, UserError):  # since it was listed: gone, replaced by a pipe, made private
        return Dropped("unreadable", "that cannot be read")
    except UnicodeDecodeError:
        return Dropped("not_utf8", "not in UTF-8")
    if b"\0" in data:
        return Dropped("binary", "binary")
    if not text.strip():
        return Dropped("empty", "empty")
    why = _why_generated(text) if code else ""
    return Dropped("generated", why) if why else Document(item.id, text)


def _stdlib() -> Iterator[Item]:
    skipped = ("site-packages", "dist-packages")
    files = _files(sysconfig.get_paths()["stdlib"], "stdlib", skipped)
    return (item for item in files if item.id.endswith(".py"))


def _folder(folder: str) -> Iterator[Item]:
    try:
        root = user_path(folder)
        found = root.is_dir()
    except UserError as error:
        raise UserError(f"the corpus {folder!r} cannot be read: {error}") from None
    except (OSError, ImportError) as error:  # epath needs another package for gs://
        raise UserError(f"cannot read the corpus {folder!r}: {reason(error)}") from error
    if not found:
        raise UserError(
            f"the corpus {folder!r} is not a folder: name a folder of text files, or stdlib, topics or descriptions"
        )
    check_not_root(root, f"the corpus {folder!r}")
    return _files(root, root.resolve().name)


def _files(root: str | os.PathLike, prefix: str, skip: tuple[str, ...] = ()) -> Iterator[Item]:
    top = epath.Path(root)
    for folder, subfolders, names in top.walk():
        subfolders[:] = [n for n in subfolders if not n.startswith(".") and n not in skip]
        inside = PurePosixPath(prefix) / folder.relative_to(top).as_posix()
        for path in (folder / name for name in names if not name.startswith(".")):
            if stamp := _stamp(path):
                # Names of files may be any bytes.
                name = f"{inside / path.name}".encode(errors="backslashreplace").decode()
                yield Item(name, stamp, partial(read_file, path))


def _stamp(path: os.PathLike) -> str:
    """Returns what changes with a file's content; "" for what is no regular file, or gone."""
    # etils' own stat fails on a local file whose owner has no name, as in many containers.
    if is_bucket(path):
        found = epath.Path(path).stat()
        return f"{found.length}:{found.mtime}"
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else ""


def _topics() -> Iterator[Item]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "this Python comes without its documentation topics: name a folder of text files instead of 'topics'"
        ) from None
    return (_text("topics", name, text) for name, text in topics.items())


def _descriptions() -> Iterator[Item]:
    found = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        found[metadata["Name"]] = metadata.get_payload() or metadata["Description"]
    return (_text("descriptions", name, text) for name, text in found.items() if name and text)


def _text(prefix: str, name: str, text: str) -> Item:
    data = text.encode(errors="surrogatepass")
    return Item(f"{prefix}/{name}", hashlib.sha256(data).hexdigest(), partial(bytes, data))
