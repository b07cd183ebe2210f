"""Lists the files of a folder and the texts that every machine has, and splits texts in blocks."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import os
import re
import stat
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

from etils import epath

from codellama_jax.data import generated_functions, generated_keys
from codellama_jax.errors import UserError
from codellama_jax.system.files import is_bucket, read_file

# Files that hold texts in a format that is not read, by the end of their name.
FORMATS = {
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
# Files with the filler of data/generated_keys.py: those with the largest `position`, of which none
# is held out, because the validation split has the smallest.
FILLER_FILES = 100
GIT_FOLDER = ".git"  # a file, too, in a submodule
_DEFINITION = re.compile(r"\n[ \t\r]*\n(?=\S)")  # a blank line that an unindented line follows
_BLANK_LINES = re.compile(r"\n([ \t\r]*\n)+")


class Item(NamedTuple):
    """A file or text that can be read."""

    id: str  # the name, the same on every machine
    stamp: str  # changes when the content changes
    read: Callable[[], bytes]  # returns the content
    size: int = 0  # bytes


class ListedFile(NamedTuple):
    """A regular file of a folder."""

    name: str  # in its folder; bytes that are not UTF-8 are surrogates
    size: int  # bytes
    stamp: str  # changes when the content changes


class Folder(NamedTuple):
    """A folder that `walk` lists."""

    name: str  # relative to the folder that is walked; "." for that folder
    files: list[ListedFile]  # sorted by name
    is_checkout: bool  # whether it holds the files of a git repository


def find(source: str) -> list[Item]:
    """Returns the texts that a name of BUILTINS names, sorted by id.

    See `CorpusConfig`. Raises UserError if there is nothing to read.
    """
    items = sorted(BUILTINS[source](), key=lambda item: item.id)
    if not items:
        raise UserError(f"the corpus {source!r} holds no files on this machine: name a folder")
    return items


def position(name: str) -> float:
    """Returns a pseudo-random number in [0, 1) that depends only on `name`.

    It decides which files are sampled and which are in the validation split.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def blocks(text: str, max_chars: int) -> list[str]:
    """Splits a text between top-level definitions into parts of at most `max_chars` characters.

    A longer definition is split at its blank lines. Lines without a blank line between them stay in
    one part, even if they are longer. Joining the parts gives `text`.
    """
    parts = []
    for definitions in _split(text, _DEFINITION, max_chars):
        parts += _split(definitions, _BLANK_LINES, max_chars)
    return parts


def _split(text: str, boundary: re.Pattern, max_chars: int) -> list[str]:
    """Splits `text` after matches of `boundary`, as late as `max_chars` allows."""
    parts, begin = [], 0
    # A boundary at the end of the text would make an empty part.
    ends = (m.end() for m in boundary.finditer(text) if m.end() < len(text))
    for start, end in itertools.pairwise([0, *ends, len(text)]):
        # The piece from start to end no longer fits into the part that starts at `begin`.
        if end - begin > max_chars and start > begin:
            parts.append(text[begin:start])
            begin = start
    return [*parts, text[begin:]]


def _stdlib() -> Iterator[Item]:
    skipped = ("site-packages", "dist-packages")
    files = _files(sysconfig.get_paths()["stdlib"], "stdlib", skipped)
    return (item for item in files if item.id.endswith(".py"))


def walk(root: str | os.PathLike, skip: tuple[str, ...] = ()) -> Iterator[Folder]:
    """Yields the folders under `root`, sorted by name, each with its regular files.

    Hidden files and folders and symlinks are left out, and folders that `skip` names.
    """
    top = epath.Path(root)
    for folder, subfolders, names in top.walk():
        is_checkout = GIT_FOLDER in subfolders or GIT_FOLDER in names
        # In place: walk() then leaves out the removed subfolders.
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n not in skip)
        files = []
        path = os.fspath(folder)
        for name in sorted(names):
            if not name.startswith(".") and (listed := list_file(f"{path}/{name}")):
                files.append(listed)
        yield Folder(folder.relative_to(top).as_posix(), files, is_checkout)


def encodable(name: str) -> str:
    """Returns a file's name with bytes that are not UTF-8 escaped; an id must be UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _files(root: str | os.PathLike, prefix: str, skip: tuple[str, ...] = ()) -> Iterator[Item]:
    """Yields the regular files under `root`, with `prefix` in the place of `root` in their ids."""
    top = epath.Path(root)
    for folder in walk(root, skip):
        for name, size, stamp in folder.files:
            item_id = encodable(f"{PurePosixPath(prefix) / folder.name / name}")
            yield Item(item_id, stamp, partial(read_file, top / folder.name / name), size)


def list_file(path: str) -> ListedFile | None:
    """Returns the name, size and stamp of a file; None if it is not regular or was deleted."""
    name = path.rpartition("/")[2]
    # etils' stat fails on a local file whose owner has no name, as in many containers.
    if is_bucket(path):
        status = epath.Path(path).stat()
        return ListedFile(name, status.length, f"{status.length}:{status.mtime}")
    # A file may be deleted between the listing of its folder and this call.
    try:
        local_status = os.lstat(path)  # lstat, because a symlink could lead out of the folder
    except OSError:
        return None
    if not stat.S_ISREG(local_status.st_mode):
        return None
    size = local_status.st_size
    return ListedFile(name, size, f"{size}:{local_status.st_mtime_ns}")


def _topics() -> Iterator[Item]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "this Python comes without its documentation topics:"
            " name a folder of text files instead of 'topics'"
        ) from None
    return (_text("topics", name, text) for name, text in topics.items())


def _descriptions() -> Iterator[Item]:
    texts = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        # The description is the body of the metadata file, in old packages a header.
        body = getattr(metadata, "get_payload", str)()
        # Where Apache Beam has imported the package importlib_metadata, it replaces Python's reader
        # and raises KeyError for a header that is missing.
        if not body and "Description" in metadata:
            body = metadata["Description"]
        if body and "Name" in metadata:
            texts[metadata["Name"]] = body
    return (_text("descriptions", name, text) for name, text in texts.items())


def _text(prefix: str, name: str, text: str) -> Item:
    """Returns the item of a text in memory. Its stamp is a hash of the text."""
    data = text.encode(errors="surrogatepass")
    return Item(
        f"{prefix}/{name}", hashlib.sha256(data).hexdigest(), partial(bytes, data), len(data)
    )


def _generated(name: str) -> Iterator[Item]:
    """Yields the documents of a corpus of data/generated_functions.py."""
    texts = generated_functions.CORPORA[name]()
    return (_text(name, f"{number:06}", text) for number, text in enumerate(texts))


def _keys(name: str) -> Iterator[Item]:
    """Yields the documents of a corpus of data/generated_keys.py."""
    lines: list[str] = []
    # The filler must be no text of the validation split, of which other probes read: see
    # FILLER_FILES.
    for item in sorted(_stdlib(), key=lambda item: position(item.id))[-FILLER_FILES:]:
        text = item.read().decode(errors="replace")
        for line in text.splitlines(keepends=True):
            if len(line) <= generated_keys.LONGEST_LINE and line.isascii():
                lines.append(line)
    texts = generated_keys.documents(lines, name)
    return (_text(name, f"{number:06}", text) for number, text in enumerate(texts))


# The texts that every machine has, by their name in a `CorpusConfig`.
BUILTINS: dict[str, Callable[[], Iterator[Item]]] = {
    "stdlib": _stdlib,
    "topics": _topics,
    "descriptions": _descriptions,
}
GENERATED = (*generated_functions.CORPORA, *generated_keys.CORPORA)
for _name in generated_functions.CORPORA:
    BUILTINS[_name] = partial(_generated, _name)
for _name in generated_keys.CORPORA:
    BUILTINS[_name] = partial(_keys, _name)
