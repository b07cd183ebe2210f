"""Lists the inputs of a corpus in parts, and reads a part as records.

An input is a folder (local or gs://), one file, or the name of texts that Python installs. A folder
may hold files, git checkouts and tables of any kind at once: the end of a file's name decides. In
a checkout tables are data of the program, not documents, unless it is one of Hugging Face's data
sets. Hidden files and symlinks are left out. A table without a column of text is dropped where
other files of the folder can be read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from etils import epath

from codellama_jax.data import sources
from codellama_jax.data.prepare.readers import arrow, checkouts, columns, files, json_lines
from codellama_jax.data.prepare.readers.base import InputOptions, Slice
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.errors import UserError
from codellama_jax.system.files import check_not_root, reason, user_path

# Yields the records of a slice; takes the slice, the name of the input and the options.
Reader = Callable[[Slice, str, InputOptions], Iterator[Record | Dropped]]
READERS: dict[str, Reader] = {
    files.FILES: files.read_files,
    files.BUILTIN: files.read_builtin,
    json_lines.READER: json_lines.read,
    arrow.PARQUET: arrow.read_parquet,
    arrow.ARROW: arrow.read_arrow,
    columns.NO_TEXT: columns.read_no_text,
}
# Yields the slices of a table; takes the complete file and the options.
SLICERS: dict[str, Callable[[Slice, InputOptions], Iterator[Slice]]] = {
    json_lines.READER: json_lines.slices,
    arrow.PARQUET: arrow.parquet_slices,
    arrow.ARROW: arrow.arrow_slices,
}
READABLE = (
    "text files in UTF-8, .ipynb, .jsonl, .jsonl.gz, .jsonl.zst, .parquet and folders of Hugging"
    " Face datasets"
)


class Part(NamedTuple):
    """What one worker reads at once: about `part_bytes` of an input."""

    number: int  # in the order of the inputs
    source: str  # the name of the input
    slices: tuple[Slice, ...]
    size: int  # bytes, the sum over the slices


def parts_of(source: str, name: str, options: InputOptions) -> list[Part]:
    """Returns the parts of an input, numbered from 0, in sorted order.

    Raises UserError if the input is missing, holds nothing that can be read or a table that is
    damaged, or if no table of it has a column of text and there is nothing else.

    Args:
        source: a folder or file, local or gs://, or `stdlib`, `topics` or `descriptions`.
        name: of the input, the first part of all ids; "" takes the name of the folder.
        options: the size of a part and the columns of tables.
    """
    if source in files.BUILTINS:
        name = name or source
        slices = files.builtin_slices(source, name, options)
    else:
        root = _existing(source)
        name = name or _name_of(str(_folder_of(root)))
        slices = (_folder_slices if root.is_dir() else _file_slices)(root, name, options)
    # The listing is complete before any work starts, so that part numbers, which name the files of
    # all stages, do not depend on the workers.
    parts = list(_grouped(slices, name, options.part_bytes))
    if not parts:
        raise UserError(f"the input {source!r} holds nothing that can be read: {READABLE}")
    return parts


def parts_of_all(inputs: Iterable[str], options: InputOptions) -> list[Part]:
    """Returns the parts of several inputs, numbered one after the other.

    Ids start with the name of the input's folder; a second folder of the same name becomes `NAME-2`
    there. Raises UserError like `parts_of`, and for an input that is inside another one.
    """
    parts: list[Part] = []
    folders: dict[str, str] = {}  # by the name that they have in ids
    places: dict[str, str] = {}  # inputs by their path
    for source in inputs:
        if source in files.BUILTINS:
            place = folder = source
        else:
            root = _existing(source)
            place, folder = str(root.resolve()), str(_folder_of(root))
        for other, earlier in places.items():
            # A folder sorts before all that is in it.
            # One of the two can only be inside the other if its path is longer.
            (outer, outer_name), (inner, name) = sorted([(other, earlier), (place, source)])
            if is_inside(inner, outer):
                problem = f"the input {name!r} is part of the input {outer_name!r}"
                raise UserError(f"{problem}, and would be read twice: leave one of them out")
        places[place] = source
        name = unique = _name_of(folder)
        number = 1
        # setdefault returns the folder that already has the name, which is this one on a match: two
        # files of one folder share its name in ids.
        while folders.setdefault(unique, folder) != folder:
            number += 1
            unique = f"{name}-{number}"
        parts += renumbered(parts_of(source, unique, options), len(parts))
    return parts


def is_inside(path: str, folder: str) -> bool:
    """Returns whether a resolved path is `folder` or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def renumbered(parts: Iterable[Part], first: int = 0) -> list[Part]:
    """Returns the parts, of several inputs one after the other, numbered from `first`."""
    return [part._replace(number=number) for number, part in enumerate(parts, first)]


def sampled(parts: list[Part], max_files: int) -> list[Part]:
    """Returns the parts with `max_files` of their files; 0 keeps all. Tables are not sampled.

    The choice depends only on the ids, so that it is the same wherever the input is stored.
    """
    positions = []
    for part in parts:
        # The position of an id is a hash, evenly spread over [0, 1): the smallest ones are a random
        # sample, of which most stays the same when files are added to the input.
        for piece in part.slices:
            for name in files.names_of(piece):
                positions.append(sources.position(f"{piece.name}/{sources.encodable(name)}"))
    if not max_files or len(positions) <= max_files:
        return parts
    # Positions below that of rank `max_files` are exactly max_files, if no two are equal.
    bound = sorted(positions)[max_files]
    chosen = []
    for part in parts:
        slices = []
        for piece in part.slices:
            kept = []
            for name in files.names_of(piece):
                if sources.position(f"{piece.name}/{sources.encodable(name)}") < bound:
                    kept.append(name)
            # A slice without names is a range of a table, which stays complete.
            if kept or not piece.names:
                slices.append(files.with_names(piece, kept))
        if slices:
            chosen.append(part._replace(slices=tuple(slices)))
    return renumbered(chosen)


def sorted_by_name(parts: list[Part]) -> list[Part]:
    """Returns the parts with the files of each slice in the order of their ids.

    Otherwise the files of a folder come before those of its subfolders.
    """
    in_order = []
    for part in parts:
        slices = []
        for piece in part.slices:
            # In the spelling that names have in ids, so that the order is that of the ids.
            names = sorted(files.names_of(piece), key=sources.encodable)
            slices.append(piece._replace(names=files.packed_names(names) if names else b""))
        in_order.append(part._replace(slices=tuple(slices)))
    return in_order


def fingerprint_of(parts: Iterable[Part]) -> str:
    """Returns a hash of the names and stamps of the parts.

    It changes with the content of a file, whose stamp is its size and time of modification, and
    with the size of the parts. It does not depend on where the input is stored.
    """
    fingerprint = hashlib.sha256()
    for part in parts:
        for piece in part.slices:
            # All but the path, and the packed names, which the stamp covers.
            content = piece._replace(path="", names=b"")
            fingerprint.update(repr((part.number, part.source, *content)).encode())
    return fingerprint.hexdigest()[:32]


def read_part(part: Part, options: InputOptions) -> Iterator[Record | Dropped]:
    """Yields the records of a part, and what is dropped, in the order of the input.

    Reasons are `unreadable`, `too_large`, `not_utf8`, `binary` (a NUL character), `empty`,
    `damaged` (a line that is not a JSON object with text, a notebook or conversation that is not
    one) and `no_text_column` (a table). Memory is bounded by a batch of rows or a few documents.

    Raises UserError that names the file if a table is truncated or damaged.
    """
    for piece in part.slices:
        yield from READERS[piece.reader](piece, part.source, options)


def _folder_of(root: epath.Path) -> epath.Path:
    """Returns the folder of an input, resolved: of a file, the one that it is in."""
    return (root if root.is_dir() else root.parent).resolve()


def _name_of(folder: str) -> str:
    """Returns the name of a folder in ids."""
    return sources.encodable(folder.rpartition("/")[2])


def _existing(source: str) -> epath.Path:
    """Returns the folder or file of an input. Raises UserError if it cannot be read."""
    try:
        root = user_path(source)
        exists = root.exists()
    except UserError as error:
        raise UserError(f"the input {source!r} cannot be read: {error}") from None
    except (OSError, ImportError) as error:  # epath needs another package for gs://
        raise UserError(f"cannot read the input {source!r}: {reason(error)}") from error
    if not exists:
        builtins = ", ".join(files.BUILTINS)
        raise UserError(f"the input {source!r} does not exist: name a folder, a file or {builtins}")
    check_not_root(root, f"the input {source!r}")
    return root


def _file_slices(root: epath.Path, name: str, options: InputOptions) -> Iterator[Slice]:
    """Yields the slices of an input that is one file, with the ids that it has in its folder."""
    # The same listing as for a folder, so that a file has one id and stamp either way.
    file = sources.list_file(str(root.resolve()))
    if file is None:
        raise UserError(f"{root} is not a regular file: name a folder or a file")
    if problem := _unreadable_format(root.name):
        raise UserError(f"{root} cannot be read ({problem}); unpack it to {READABLE}")
    if _table_reader(root.name):
        yield from _table_slices(root, f"{name}/{sources.encodable(root.name)}", file, options)
    else:
        collector = files.Collector(Slice(files.FILES, str(root.parent), name, 0, ""), options)
        yield from collector.add(root.name, file.size, file.stamp)
        yield from collector.rest()


def _table_slices(
    path: epath.Path, name: str, file: sources.ListedFile, options: InputOptions
) -> Iterator[Slice]:
    reader = _table_reader(path.name)
    return SLICERS[reader](Slice(reader, str(path), name, file.size, file.stamp), options)


def _folder_slices(root: epath.Path, name: str, options: InputOptions) -> Iterator[Slice]:
    """Yields the slices of a folder: of its files by repository, and of its tables."""
    # A stack, because the walk is depth-first and checkouts may be nested, as submodules are. The
    # last entry is the innermost one; the first, the input itself, holds every folder.
    repositories = [_Repository(root, ".", None, name, options)]
    unreadable = readable = 0
    no_text: columns.NoTextError | None = None  # of the first table without text
    for folder in sources.walk(root):
        while not repositories[-1].holds(folder.name):
            # The walk has left this checkout: its last files end its last slice.
            yield from repositories.pop().files.rest()
        if folder.is_checkout:
            # The files so far are older than the checkout's, so that the order is that of walk.
            yield from repositories[-1].files.rest()
            checkout = checkouts.checkout_of(root / folder.name)
            repositories.append(_Repository(root, folder.name, checkout, name, options))
        repository = repositories[-1]
        names = [file.name for file in folder.files]
        # Files of a Hugging Face dataset that only describe or cache it hold no documents.
        documents = set(arrow.dataset_files(root / folder.name, names))
        for file in folder.files:
            relative = _joined(folder.name, file.name)
            if file.name not in documents or not repository.tracks(relative):
                continue
            is_unreadable = bool(_unreadable_format(file.name))
            unreadable, readable = unreadable + is_unreadable, readable + (not is_unreadable)
            if repository.has_tables and _table_reader(file.name):
                # A table is a separate slice. The files before it are yielded first to keep the
                # order.
                yield from repository.files.rest()
                table_name = f"{name}/{sources.encodable(relative)}"
                try:
                    yield from _table_slices(root / relative, table_name, file, options)
                except columns.NoTextError as error:
                    no_text = no_text or error
                    # Raising would lose the other files. Only an input of nothing but such tables
                    # is an error.
                    readable -= 1
                    path = str(root / relative)
                    yield Slice(columns.NO_TEXT, path, table_name, 0, file.stamp)
            else:
                document = repository.relative(relative)
                yield from repository.files.add(document, file.size, file.stamp)
    while repositories:
        yield from repositories.pop().files.rest()
    if no_text and not readable:
        raise no_text
    if unreadable and not readable:
        raise UserError(
            f"the input {root} holds only files of formats that cannot be read, as archives:"
            f" unpack them to {READABLE}"
        )


class _Repository:
    """A checkout below the input, or the input itself for the files outside of checkouts."""

    def __init__(
        self,
        root: epath.Path,
        folder: str,
        checkout: checkouts.Checkout | None,
        name: str,
        options: InputOptions,
    ):
        """Takes the input, and the checkout's folder relative to it."""
        self._folder = folder
        self._tracked = checkout.tracked if checkout else None
        self.has_tables = checkout is None or checkout.is_dataset
        if folder != ".":
            name = f"{name}/{sources.encodable(folder)}"
        empty = Slice(files.FILES, str(root / folder), name, 0, "")
        if checkout:
            empty = empty._replace(repository=checkout.repository, license=checkout.license)
        self.files = files.Collector(empty, options)

    def holds(self, folder: str) -> bool:
        """Returns whether a folder, relative to the input, is in the repository."""
        return (
            self._folder == "." or folder == self._folder or folder.startswith(self._folder + "/")
        )

    def relative(self, path: str) -> str:
        """Returns a path, relative to the input, relative to the repository."""
        return path if self._folder == "." else path[len(self._folder) + 1 :]

    def tracks(self, path: str) -> bool:
        """Returns whether git tracks a file, given relative to the input."""
        return self._tracked is None or self.relative(path) in self._tracked


def _grouped(slices: Iterable[Slice], source: str, part_bytes: int) -> Iterator[Part]:
    """Yields parts of consecutive slices, of at most `part_bytes` or one slice."""
    number = size = 0
    group: list[Slice] = []
    for piece in slices:
        if group and size + piece.size > part_bytes:
            yield Part(number, source, tuple(group), size)
            number, size, group = number + 1, 0, []
        group.append(piece)
        size += piece.size
    if group:
        yield Part(number, source, tuple(group), size)


def _table_reader(name: str) -> str:
    """Returns the reader of a table by the end of its file's name, "" for other files."""
    lower = name.lower()
    if json_lines.is_json_lines(lower):
        return json_lines.READER
    return {".parquet": arrow.PARQUET, ".arrow": arrow.ARROW}.get(os.path.splitext(lower)[1], "")


def _unreadable_format(name: str) -> str:
    """Returns the format of an archive, of PDF or of another file that is not read; else ""."""
    lower = name.lower()
    ending = os.path.splitext(lower)[1]
    if _table_reader(lower) or ending in (".json", ".ipynb"):
        return ""
    return sources.FORMATS.get(ending, "")


def _joined(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"
