"""Reads the texts of a corpus: files of a folder, or texts that every machine has.

A file is dropped if it is empty, not UTF-8, binary, generated or a near-duplicate of a file that is
kept. Code counts as generated if its first lines hold a marker such as "do not edit", if a line has
over 1,000 characters or the mean line over 100, or if fewer than 40 % of its visible characters are
letters, as in tables of data. The bounds on lines are those of Codex, section 3.1; the paper
mentions the share of letters without a number, and 40 % is our choice.
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
READABLE_CORPUS = (
    "a corpus is a folder of plain text files in UTF-8, such as .py or .md, one document per file: "
    "write the texts of tables, JSON lines, notebooks and archives to such files"
)
GIT_FOLDER = ".git"  # a file, too, in a submodule
HEAD_LINES = 10  # lines at the start of a file in which a marker counts
MAX_LINE = 1000  # characters
MAX_MEAN_LINE = 100  # characters
MIN_LETTERS = 0.4  # share of the visible characters
SIMILARITY = 0.85  # Jaccard index of the lines of two files above which they are near-duplicates

_GENERATED = re.compile(
    r"auto(matically)?[- ]?generated|@generated|do not edit|generated and used by"
    r"|generated (by|from|with) \S*\w[./]\w",
    re.IGNORECASE,
)
# Bytes that count as letters. Every byte of a character outside ASCII is one of the upper 128.
_LETTERS = string.ascii_letters.encode() + bytes(range(128, 256))
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


class Document(NamedTuple):
    """A text that is kept."""

    id: str  # of the Item
    text: str


class Dropped(NamedTuple):
    """A file that is not kept."""

    kind: str  # a name in COUNTS
    reason: str  # for the message; continues "1 file"


class Loaded(NamedTuple):
    """The documents that `load` kept, and why it dropped the other files."""

    documents: list[Document]
    counts: dict[str, int]  # by the names of COUNTS
    dropped: dict[str, list[str]]  # ids of the dropped items by reason

    def reasons(self) -> str:
        """Returns the number of files dropped for each reason, most first, with the first file."""
        by_count = sorted(self.dropped.items(), key=lambda item: -len(item[1]))
        return "; ".join(f"{len(ids):,} {why} (first: {ids[0]})" for why, ids in by_count)


def find(source: str) -> list[Item]:
    """Returns the items of a source, sorted by id.

    `source` is `stdlib`, `topics`, `descriptions` (see `CorpusConfig`) or a folder, local or gs://.
    Of a folder only regular files are listed, without hidden files and symlinks.

    Raises UserError if there is nothing to read.
    """
    builtin = {"stdlib": _stdlib, "topics": _topics, "descriptions": _descriptions}
    unsorted = builtin[source]() if source in builtin else _folder(source)
    items = sorted(unsorted, key=lambda item: item.id)
    if not items:
        names = ", ".join(builtin)
        fix = f"name a folder of text files, or one of {names}"
        raise UserError(f"the corpus {source!r} holds no files: {fix}")
    return items


def sample(items: list[Item], max_files: int) -> list[Item]:
    """Returns `max_files` of the items, sorted by id; all items if `max_files` is 0.

    The choice depends only on the ids, so that it is the same wherever the folder is.
    """
    if not max_files or len(items) <= max_files:
        return items
    by_position = sorted(items, key=lambda item: position(item.id))
    return sorted(by_position[:max_files])


def position(name: str) -> float:
    """Returns a pseudo-random number in [0, 1) that depends only on `name`.

    It decides which files are sampled and which are in the validation split.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def load(items: Iterable[Item], code: bool) -> Loaded:
    """Reads the items in order and drops those that are not worth training on.

    Generated files are dropped only if `code` is true, because prose too has long lines.
    """
    counts = Counter(dict.fromkeys(COUNTS, 0))
    dropped: dict[str, list[str]] = {}
    documents = []
    for item in items:
        result = _read(item, code)
        if isinstance(result, Document):
            documents.append(result)
        else:
            counts[result.kind] += 1
            # "JSON lines" helps a user more than "with a line over 1,000 characters".
            dropped.setdefault(_named_format(item.id) or result.reason, []).append(item.id)
    # Last, so that an unusable file cannot make a usable one its duplicate.
    copies = near_duplicates([document.text for document in documents])
    kept = [document for i, document in enumerate(documents) if i not in copies]
    if copies:
        dropped["nearly equal to another file"] = [documents[i].id for i in sorted(copies)]
    characters = sum(len(document.text) for document in kept)
    counts.update(near_duplicates=len(copies), files=len(kept), characters=characters)
    return Loaded(kept, dict(counts), dropped)


def why_generated(text: str) -> str:
    """Returns the reason why code counts as generated or as data; "" if a person wrote it."""
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
    """Returns the format that the end of a file's name stands for, "" if it may be text."""
    return FORMATS.get(PurePosixPath(name).suffix.lower(), "")


def near_duplicates(texts: list[str]) -> set[int]:
    """Returns the indices of the texts that are near-duplicates of an earlier text.

    Two texts are near-duplicates if the Jaccard index of their sets of stripped lines, estimated by
    MinHash, is at least SIMILARITY.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SIMILARITY, num_perm=128)
    copies = set()
    kept: dict[int, MinHash] = {}
    # Copying one empty sketch is faster than drawing its 128 permutations for each text.
    empty = MinHash(num_perm=128, hashfunc=zlib.crc32)
    for i, text in enumerate(texts):
        sketch = empty.copy()
        sketch.update_batch({line.strip() for line in text.encode().splitlines()})
        # The index returns candidates, some of them below the threshold.
        if any(sketch.jaccard(kept[j]) >= SIMILARITY for j in index.query(sketch)):
            copies.add(i)
        else:
            index.insert(i, sketch)
            kept[i] = sketch
    return copies


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
    ends = (m.end() for m in boundary.finditer(text) if m.end() < len(text))
    for start, end in itertools.pairwise([0, *ends, len(text)]):
        # The piece from start to end no longer fits into the part that starts at `begin`.
        if end - begin > max_chars and start > begin:
            parts.append(text[begin:start])
            begin = start
    return [*parts, text[begin:]]


def _read(item: Item, code: bool) -> Document | Dropped:
    try:
        data = item.read()
        text = "" if b"\0" in data else data.decode()
    except (OSError, UserError):  # deleted, replaced by a pipe or made private since it was listed
        return Dropped("unreadable", "that cannot be read")
    except UnicodeDecodeError:
        return Dropped("not_utf8", "not in UTF-8")
    if b"\0" in data:
        return Dropped("binary", "binary")
    if not text.strip():
        return Dropped("empty", "empty")
    reason = why_generated(text) if code else ""
    if reason:
        return Dropped("generated", reason)
    return Document(item.id, text)


def _stdlib() -> Iterator[Item]:
    skipped = ("site-packages", "dist-packages")
    files = _files(sysconfig.get_paths()["stdlib"], "stdlib", skipped)
    return (item for item in files if item.id.endswith(".py"))


def _folder(folder: str) -> Iterator[Item]:
    try:
        root = user_path(folder)
        is_folder = root.is_dir()
    except UserError as error:
        raise UserError(f"the corpus {folder!r} cannot be read: {error}") from None
    except (OSError, ImportError) as error:  # epath needs another package for gs://
        raise UserError(f"cannot read the corpus {folder!r}: {reason(error)}") from error
    if not is_folder:
        raise UserError(
            f"the corpus {folder!r} is not a folder:"
            " name a folder of text files, or stdlib, topics or descriptions"
        )
    check_not_root(root, f"the corpus {folder!r}")
    return _files(root, root.resolve().name)


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
