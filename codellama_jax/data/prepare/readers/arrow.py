"""Tables of Parquet, in ranges of row groups, and of Arrow, as Hugging Face `datasets` saves them.

A dataset's folder holds state.json, which lists its Arrow files, and dataset_info.json. A folder of
several splits holds such folders and dataset_dict.json. A record's id ends with its row in the
file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from etils import epath

from codellama_jax.data.prepare.readers.base import InputOptions, Slice
from codellama_jax.data.prepare.readers.columns import (
    Columns,
    batch_rows,
    check_types,
    columns_of,
    record_of,
)
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.errors import UserError
from codellama_jax.system.files import GIT_LFS_POINTER, is_bucket, open_file, read_state, reason

PARQUET = "parquet"
ARROW = "arrow"
STATE = "state.json"
# Files of a dataset's folder that describe it.
DESCRIPTIONS = (STATE, "dataset_info.json", "dataset_dict.json")
BATCH_ROWS = 64  # rows of Parquet that are decoded at once
BUFFER = 2**20
FILE_MAGIC = b"ARROW1"  # of Arrow files with an index; datasets writes streams


def parquet_slices(file: Slice, options: InputOptions) -> Iterator[Slice]:
    """Yields ranges of row groups of a Parquet file, of at most `part_bytes` or one row group.

    Raises UserError if the file is damaged or has no column of text.
    """
    with _readable(file.path), _parquet(file.path) as table:
        # Now, when the input is listed: a table without text must not end the work of a worker
        # later.
        _columns(table.schema_arrow, options, file.path)
        start = size = 0
        for group in range(table.num_row_groups):
            group_size = table.metadata.row_group(group).total_byte_size
            # A row group is never divided, since Parquet compresses it as a unit.
            if group > start and size + group_size > options.part_bytes:
                yield file._replace(start=start, end=group, size=size)
                start, size = group, 0
            size += group_size
        if table.num_row_groups:
            yield file._replace(start=start, end=table.num_row_groups, size=size)


def read_parquet(part: Slice, source: str, options: InputOptions) -> Iterator[Record | Dropped]:
    """Yields the records of some row groups. Raises UserError if the file is damaged."""
    with _readable(part.path), _parquet(part.path) as table:
        columns = _columns(table.schema_arrow, options, part.path)
        row = 0
        # The id holds the row in the file, not in the slice, so that it does not depend on
        # part_bytes.
        for group in range(part.start):
            row += table.metadata.row_group(group).num_rows
        groups = list(range(part.start, part.end))
        for batch in table.iter_batches(BATCH_ROWS, groups, columns=columns.used()):
            for values in batch_rows(batch, columns):
                yield record_of(values, columns, f"{part.name}#{row}", source, options)
                row += 1


def arrow_slices(file: Slice, options: InputOptions) -> Iterator[Slice]:
    """Yields an Arrow file as one slice. Raises UserError like `parquet_slices`."""
    with _readable(file.path), _arrow(file.path) as (schema, _):
        _columns(schema, options, file.path)
    yield file


def read_arrow(part: Slice, source: str, options: InputOptions) -> Iterator[Record | Dropped]:
    """Yields the records of an Arrow file. Raises UserError if it is damaged."""
    with _readable(part.path), _arrow(part.path) as (schema, batches):
        columns = _columns(schema, options, part.path)
        row = 0
        for batch in batches:
            # A batch of datasets has 1,000 rows: decoded in parts, without a copy.
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for values in batch_rows(batch.slice(start, BATCH_ROWS), columns):
                    yield record_of(values, columns, f"{part.name}#{row}", source, options)
                    row += 1


def dataset_files(folder: epath.Path, names: Sequence[str]) -> list[str]:
    """Returns the files of a folder without those that describe or cache a dataset.

    state.json lists the files of a dataset; others of the folder, cache-*.arrow, are results that
    `datasets` may use again.

    Args:
        folder: the folder.
        names: its files.
    """
    if not any(name.endswith(".arrow") for name in names):
        return [name for name in names if name != "dataset_dict.json"]
    state = (read_state(folder / STATE) if STATE in names else None) or {}
    files = state.get("_data_files")
    # Another program's state.json may hold anything.
    listed: set[str] = set()
    for file in files if isinstance(files, list) else ():
        if isinstance(file, dict):
            listed.add(str(file.get("filename")))
    kept = []
    for name in names:
        is_unlisted = name.endswith(".arrow") and listed and name not in listed
        if name not in DESCRIPTIONS and not is_unlisted and not name.startswith("cache-"):
            kept.append(name)
    return kept


def _columns(schema: pa.Schema, options: InputOptions, path: str) -> Columns:
    columns = columns_of(tuple(schema.names), options, path)
    check_types(schema, columns, options, path)
    return columns


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[pq.ParquetFile]:
    # Without pre-buffering a worker holds pages of the columns, not complete columns.
    settings = {"buffer_size": BUFFER, "pre_buffer": False}
    with open_file(path) as file, pq.ParquetFile(file, **settings) as table:
        yield table


@contextlib.contextmanager
def _arrow(path: str) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    with contextlib.ExitStack() as stack:
        # Mapped into memory, a batch is read only where its columns are used.
        file: Any = stack.enter_context(open_file(path) if is_bucket(path) else pa.memory_map(path))
        is_indexed = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        file.seek(0)
        if is_indexed:
            table = stack.enter_context(pa.ipc.open_file(file))
            yield table.schema, map(table.get_batch, range(table.num_record_batches))
        else:
            stream = stack.enter_context(pa.ipc.open_stream(file))
            yield stream.schema, iter(stream)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Raises UserError for a file that is missing, damaged or a pointer of git-lfs."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        with contextlib.suppress(OSError), open_file(path) as file:
            if file.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER:
                pointer = f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull`"
                raise UserError(pointer) from None
        problem = f"{path} is truncated or damaged ({reason(error)})"
        raise UserError(f"{problem}: download or write it again") from error
