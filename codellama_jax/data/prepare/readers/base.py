"""What all readers share: options, the slice of an input, and the checks of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from codellama_jax.checked import Checked, Range
from codellama_jax.data.prepare.filters.languages import language_of
from codellama_jax.data.prepare.readers import notebooks
from codellama_jax.data.prepare.records import Dropped, Record

BYTE_ORDER_MARK = "\ufeff"

Bytes = Annotated[int, Range(1, 2**50)]


@dataclass(frozen=True)
class InputOptions(Checked):
    """How the inputs of a corpus are read.

    Columns are those of JSON lines, Parquet and Arrow. "" takes the first column whose name is
    known for the field, as in The Stack or StarCoder's data; see `readers/columns.py`.
    """

    text_column: str = ""  # Column of the text of a document.
    path_column: str = ""  # Column of the path in the repository.
    language_column: str = ""  # Column of the language.
    repository_column: str = ""  # Column of OWNER/NAME.
    license_column: str = ""  # Column of the license or licenses.
    stars_column: str = ""  # Column of the stars of the repository.
    # script: code with the Markdown cells as comments; structured: cells between StarCoder's
    # sentinels. StarCoder was trained on both.
    notebooks: Literal["script", "structured"] = "script"
    max_file_bytes: Bytes = 10 * 2**20  # A longer document is dropped.
    part_bytes: Bytes = 64 * 2**20  # Of the input that one worker reads as one part.


class Slice(NamedTuple):
    """A piece of an input that is read at once: some files, or a range of one file."""

    reader: str  # a name in inputs.READERS
    path: str  # of the file, or of the folder of the files
    name: str  # what `path` is called in ids, SOURCE/PATH: the same on every machine
    size: int  # bytes on disk; for row groups of Parquet, bytes in memory
    stamp: str  # changes when the content or the set of names changes
    start: int = 0  # the first byte of a range of JSON lines, or the first row group
    end: int = 0  # the end of that range; 0 for a file that is not divided
    names: bytes = b""  # of the files in the folder, by `packed_names`
    repository: str = ""  # OWNER/NAME of a checkout
    license: str = ""  # of that repository


def text_of(value: bytes | str, document_id: str, options: InputOptions) -> str | Dropped:
    """Returns the text of a document, or why it is dropped.

    A byte order mark is removed. Everything else, line ends too, is kept as it is.

    Args:
        value: the text, or its bytes in UTF-8.
        document_id: the id for `Dropped`.
        options: the limit on the size.
    """
    # No text file holds a NUL: such files are binaries with the ending of a source file.
    if "\0" in value if isinstance(value, str) else b"\0" in value:
        return Dropped(document_id, "binary", len(value))
    try:
        # A str may hold half of a surrogate pair, which JSON can write and UTF-8 cannot.
        size = len(value.encode() if isinstance(value, str) else value)
        if size > options.max_file_bytes:
            return Dropped(document_id, "too_large", len(value))
        text = value if isinstance(value, str) else value.decode()
    except UnicodeError:
        return Dropped(document_id, "not_utf8", len(value))
    if text.startswith(BYTE_ORDER_MARK):
        text = text[1:]
    if not text or text.isspace():
        return Dropped(document_id, "empty", len(text))
    return text


def completed(record: Record, options: InputOptions) -> Record | Dropped:
    """Returns the record with its language, and with the text of a notebook instead of its JSON."""
    if is_notebook(record):
        notebook = notebooks.converted(record.text, options.notebooks)
        if not notebook:
            return Dropped(record.id, "damaged", len(record.text), "Jupyter Notebook")
        if not notebook.text.strip():
            return Dropped(record.id, "empty", len(record.text), "Jupyter Notebook")
        return record._replace(text=notebook.text, language=notebook.language)
    return with_language(record)


def is_notebook(record: Record) -> bool:
    """Returns whether a record comes from a notebook, by its path."""
    return record.path.lower().endswith(".ipynb")


def with_language(record: Record) -> Record:
    """Returns the record with its language, from its path and text where it is unknown."""
    if record.language:
        return record
    return record._replace(language=language_of(record.path, record.text))
