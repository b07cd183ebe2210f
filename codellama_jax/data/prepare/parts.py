"""The files between the stages of `prepare`: Parquet tables, written completely or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import reason

ROWS_PER_GROUP = 1000  # rows that a reader or writer holds in memory at once
GROUP_BYTES = 32 * 2**20  # of text, after which a row group ends early

# Documents that passed the filters, in the order of the input.
DOCUMENTS = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("path", pa.string()),
        ("language", pa.string()),
        ("repository", pa.string()),
        ("license", pa.string()),
        ("stars", pa.int64()),
        ("source", pa.string()),
        ("digest", pa.binary(16)),  # of the text: equal for exact duplicates
        ("bands", pa.binary()),  # hash of each band of the MinHash signature, 8 bytes each
    ]
)


def part_name(number: int, kind: str = "parquet") -> str:
    """Returns the file name of a part; names sort like their numbers."""
    return f"part-{number:06d}.{kind}"


def write_rows(
    path: epath.PathLike, schema: pa.Schema, rows: Iterable[dict[str, Any]], sized: str = ""
) -> None:
    """Writes rows to a Parquet file that appears under its name only when it is complete.

    Memory is bounded by one row group. Any number of workers may write the same rows at once.

    Args:
        path: the file, local or gs://.
        schema: the columns.
        rows: dicts by column, in the order of the file.
        sized: a column of text; a row group ends early where it exceeds GROUP_BYTES.

    Raises UserError that names the file if the disk is full.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Outside the names that readers list, so that a killed writer leaves nothing that is read.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with (
            temporary.open("wb") as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            for group in _groups(rows, sized):
                writer.write_table(pa.Table.from_pylist(group, schema))
        # Renaming is atomic: of several workers that write the same part, the last one wins, and a
        # reader sees one complete file or the other.
        temporary.replace(target)
    except OSError as error:  # Arrow's do not name the file
        raise UserError(f"cannot write {target}: {reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_rows(path: epath.PathLike, columns: Sequence[str] | None = None) -> Iterator[dict]:
    """Yields the rows of a Parquet file as dicts, one row group in memory at a time.

    Raises UserError that names the file if it cannot be read.

    Args:
        path: the file, local or gs://.
        columns: the columns to read; None reads all.
    """
    # Opened here and not in the caller: a generator closes the file when it is exhausted.
    with epath.Path(path).open("rb") as file:
        try:
            table = pq.ParquetFile(file)
            for group in range(table.num_row_groups):
                yield from table.read_row_group(group, columns=columns).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            fix = f"delete the folder {epath.Path(path).parent} and run the same command again"
            raise UserError(f"{path} cannot be read ({reason(error)}): {fix}") from error


def _groups(rows: Iterable[dict[str, Any]], sized: str) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows in lists of at most ROWS_PER_GROUP rows and about GROUP_BYTES."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        # Groups end by size too: 1,000 rows of long files would be gigabytes.
        size += len(row[sized]) if sized else 0
        if len(group) == ROWS_PER_GROUP or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
