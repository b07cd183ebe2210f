"""Reads records of published CSV files with the checks of records of JSON files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from codellama_jax.benchmarks.benchmark import Record, files_of, read_records
from codellama_jax.benchmarks.fields import Kind, check_record
from codellama_jax.errors import UserError
from codellama_jax.system.files import decode_text, read_file

MAX_FIELD = 1 << 27  # characters; Python's own limit of 131,072 is below that of some answers


def read_table(
    path: str, json_fields: Mapping[str, Kind], csv_fields: Mapping[str, Kind]
) -> list[Record]:
    """Returns the records of a .csv file, or of .jsonl, .jsonl.gz and .json files.

    Args:
        path: --data.
        json_fields: of the records of JSON files.
        csv_fields: by the columns of a CSV file; all values are strings.
    """
    if not path.lower().endswith(".csv"):
        return read_records(path, json_fields)
    (file,) = files_of(path, (".csv",))
    return _rows(file, csv_fields)


def _rows(file: Path, fields: Mapping[str, Kind]) -> list[Record]:
    """Returns the rows of a file by column. Raises UserError for one with too many values."""
    csv.field_size_limit(MAX_FIELD)
    # Spreadsheets write a byte order mark, which would become part of the first column's name.
    text = decode_text(read_file(file), str(file)).lstrip("\ufeff")
    # newline="" leaves line breaks inside of quoted cells as they are.
    reader = csv.DictReader(io.StringIO(text, newline=""))
    records: list[Record] = []
    try:
        for row in reader:
            place = f"line {reader.line_num} of {file}"
            if None in row:
                raise UserError(f"{place} has more values than the first line has columns")
            # A line with fewer values lacks the last ones.
            values = {name: value for name, value in row.items() if value is not None}
            check_record(values, fields, place)
            records.append({**values, "file": file.stem, "place": place})
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {file} is not CSV: {error}") from None
    return records
