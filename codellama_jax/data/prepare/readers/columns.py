"""The columns of tables, and the record that a row becomes.

The layouts that are known without options, all from the cards and scripts that BigCode published:
The Stack v1 (content, max_stars_repo_path, max_stars_repo_name, max_stars_repo_licenses,
max_stars_count, lang), StarCoder's data (content and the first two of those; no language), The
Stack v2 (path, repo_name, detected_licenses, star_events_count, language; it holds no text, so the
content must have been added), and The Stack's samples and GitHub Code (repository_name, licenses,
code). The names of v1 and of StarCoder's data are those in BigCode's own scripts; the names of v2
are from memory of its card, and an option names any other column.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from codellama_jax.checked import nearest
from codellama_jax.data.prepare.filters.languages import canonical
from codellama_jax.data.prepare.readers import conversations
from codellama_jax.data.prepare.readers.base import (
    InputOptions,
    Slice,
    completed,
    is_notebook,
    text_of,
    with_language,
)
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.errors import UserError

NO_TEXT = "no_text"  # the reader of a table without text
MOST_STARS = 10**9  # of a repository; no one has so many
# The names of a field in known layouts; the first one that a table has is used.
KNOWN = {
    "text": ("content", "text", "code"),
    "path": ("max_stars_repo_path", "path", "file_path", "filename"),
    "language": ("lang", "language", "programming_language"),
    "repository": ("max_stars_repo_name", "repo_name", "repository_name", "repository", "repo"),
    "license": ("max_stars_repo_licenses", "detected_licenses", "licenses", "license"),
    "stars": ("max_stars_count", "star_events_count", "stars"),
}


class NoTextError(UserError):
    """A table has no column of text, and no option names one."""


class Columns(NamedTuple):
    """The column of each field, "" where a table has none."""

    text: str
    path: str
    language: str
    repository: str
    license: str
    stars: str
    # Of a conversation or a pair; read instead of the text, unless an option names the text.
    messages: tuple[str, ...]

    def used(self) -> list[str]:
        """Returns the names of the columns that are read."""
        *single, messages = self
        return sorted({name for name in (*single, *messages) if name})


@functools.lru_cache(maxsize=1024)
def columns_of(available: tuple[str, ...], options: InputOptions, table: str) -> Columns:
    """Returns the columns of a table.

    Raises UserError if a column that an option names is missing, NoTextError if there is no text.

    Args:
        available: the names of the table's columns.
        options: the columns that the user named.
        table: the name of the table, for the message.
    """
    messages = conversations.columns_of(available)
    if not options.text_column and not messages and not set(KNOWN["text"]) & set(available):
        expected = ", ".join((*KNOWN["text"], *conversations.MESSAGES[:2]))
        raise NoTextError(
            f"{table} has no column of a known name that holds text ({expected}): its columns are"
            f" {_listed(available)}; name one as text_column"
        )
    chosen = {}
    for field, names in KNOWN.items():
        option = f"{field}_column"
        column = getattr(options, option)
        if column and column not in available:
            raise UserError(
                f"{table} has no column {column!r} ({option}{nearest(column, available)}):"
                f" its columns are {_listed(available)}"
            )
        known = [name for name in names if name in available]
        chosen[field] = column or (known[0] if known else "")
    # A text that the user names goes before the messages that the table also has.
    if options.text_column and messages != (options.text_column,):
        messages = ()
    return Columns(**chosen, messages=messages)


def read_no_text(part: Slice, source: str, options: InputOptions) -> Iterator[Dropped]:
    """Yields that a table of a folder is dropped."""
    yield Dropped(part.name, "no_text_column")


def record_of(
    row: dict[str, Any], columns: Columns, document_id: str, source: str, options: InputOptions
) -> Record | Dropped:
    """Returns the record of a row, or why it is dropped.

    Args:
        row: the values by column; the text may be bytes.
        columns: the column of each field.
        document_id: the id of the record.
        source: the name of the input.
        options: how texts are read.
    """
    value = row.get(columns.text)
    language = _words(row.get(columns.language))
    if columns.messages:
        values = {name: row.get(name) for name in columns.messages}
        value = conversations.canonical_text(values)
        language = conversations.LANGUAGE
        if value is None:
            return Dropped(document_id, "damaged")
    if value is None:
        return Dropped(document_id, "empty")
    if not isinstance(value, str | bytes):
        return Dropped(document_id, "damaged")
    text = text_of(value, document_id, options)
    if isinstance(text, Dropped):
        return text
    record = Record(
        id=document_id,
        text=text,
        path=_words(row.get(columns.path)),
        language=canonical(language) if language else "",
        repository=_words(row.get(columns.repository)),
        license=_license(row.get(columns.license)),
        stars=_stars(row.get(columns.stars)),
        source=source,
    )
    # Tables of StarCoder hold notebooks that are text already.
    if is_notebook(record) and not record.text.lstrip().startswith("{"):
        return with_language(record)
    return completed(record, options)


def check_types(schema: pa.Schema, columns: Columns, options: InputOptions, table: str) -> None:
    """Raises UserError if the column of the text does not hold text, NoTextError if not named."""
    if not columns.text or columns.messages:
        return
    kind = schema.field(columns.text).type
    # A column with few different texts may be stored as a dictionary of them.
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not _is_text(plain):
        kind_of_error = UserError if options.text_column else NoTextError
        raise kind_of_error(
            f"the column {columns.text!r} of {table} holds {kind}: name a column of text as"
            " text_column"
        )


def batch_rows(batch: pa.RecordBatch, columns: Columns) -> Iterator[dict[str, Any]]:
    """Yields the rows of a batch as dicts; the text as bytes, because it may not be UTF-8."""
    values: dict[str, list] = {}
    for name in columns.used():
        # Column by column: pyarrow converts an array at once, and a single cell slowly.
        values[name] = _values(batch.column(name), as_bytes=name == columns.text)
    for row in range(batch.num_rows):
        yield {name: column[row] for name, column in values.items()}


def _values(column: pa.Array, as_bytes: bool) -> list:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_text(column.type):
        return column.to_pylist()
    # pyarrow would raise for a complete batch if one of its strings is not UTF-8.
    is_large = column.type in (pa.large_string(), pa.large_binary())
    values = column.cast(pa.large_binary() if is_large else pa.binary()).to_pylist()
    if as_bytes:
        return values
    return [value.decode(errors="replace") if value is not None else None for value in values]


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:30])
    return f"{shown} and {len(names) - 30} more" if len(names) > 30 else shown or "none"


def _words(value: Any) -> str:
    """Returns a name that is safe to write as UTF-8; "" for what is not text."""
    # A lone surrogate from JSON cannot be written as UTF-8.
    return value.encode(errors="replace").decode().strip() if isinstance(value, str) else ""


def _license(value: Any) -> str:
    """Returns the license in lower case; several, all of which apply, are joined by " and "."""
    values = value if isinstance(value, list) else [value]
    # Sorted, so that equal licenses in another order are one entry of the data card.
    return " and ".join(sorted({_words(item).lower() for item in values if _words(item)}))


def _stars(value: Any) -> int:
    try:
        stars = int(value)
    except (TypeError, ValueError, OverflowError):  # null, NaN or a word
        return -1
    # A number that the int64 column cannot hold is damage, too.
    return stars if 0 <= stars <= MOST_STARS else -1
