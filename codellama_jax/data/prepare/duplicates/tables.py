"""Tables of NumPy columns that travel between the workers of a pipeline, and their files.

A table is one value of a GroupByKey. It holds the rows of many documents, because Beam takes about
10 microseconds and several hundred bytes per value, however small it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from codellama_jax.data.prepare.records import ROW_BITS
from codellama_jax.data.prepare.runners import Runner
from codellama_jax.system.files import write_file

Table = dict[str, np.ndarray]  # columns of equal length

_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads consecutive numbers


def shuffle(runner: Runner, items: Sequence[Any], *steps: Callable[[Any], Iterable[Any]]) -> None:
    """Runs `steps` over `items` with a GroupByKey between each two of them.

    The first step takes an item, the others take (key, values). All but the last yield pairs of an
    int key and a value; the last writes files and returns (). Nothing runs without items.
    """

    def build(pipeline: Any) -> None:
        import apache_beam as beam

        created = pipeline | "Items" >> beam.Create(list(items), reshuffle=False)
        # Otherwise the first worker would get all the items.
        collection = created | "Spread" >> beam.Reshuffle()
        for number, step in enumerate(steps):
            if number:
                collection = collection | f"Group {number}" >> beam.GroupByKey()
            collection = collection | f"Step {number}" >> beam.FlatMap(step)

    if items:
        runner.run(build)


def concatenated(tables: Iterable[Table]) -> Table:
    """Returns the rows of one or more tables with the same columns."""
    parts = list(tables)
    result = {}
    for name in parts[0]:
        result[name] = np.concatenate([part[name] for part in parts])
    return result


def taken(table: Table, rows: np.ndarray) -> Table:
    """Returns the rows that a mask or an array of indices selects."""
    return {name: column[rows] for name, column in table.items()}


def sorted_rows(table: Table, *names: str) -> Table:
    """Returns the distinct combinations of the named columns in order, with one row for each.

    The first name is the most significant.
    """
    # lexsort takes the most significant key last, this function takes it first.
    order = np.lexsort([table[name] for name in reversed(names)])
    ordered = taken(table, order)
    return taken(ordered, starts(*(ordered[name] for name in names)))


def starts(*columns: np.ndarray) -> np.ndarray:
    """Returns a mask of the rows, ordered by `columns`, that differ from the row before."""
    mask = np.zeros(len(columns[0]), bool)
    mask[:1] = True
    for column in columns:
        mask[1:] |= column[1:] != column[:-1]
    return mask


def smallest(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns for each row the least value of its group; `mask` marks the first row of groups."""
    if not len(values):
        return values
    # reduceat gives one value per group. cumsum(mask) - 1 is the group of each row, which spreads
    # the values over the rows again.
    return np.minimum.reduceat(values, np.flatnonzero(mask))[np.cumsum(mask) - 1]


def split(table: Table, keys: np.ndarray) -> Iterator[tuple[int, Table]]:
    """Yields (key, rows) for each distinct key of an int array, in the order of keys."""
    # One stable sort instead of a mask per key: there may be as many keys as parts or partitions.
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(starts(keys[order]))
    for begin, end in zip(begins, [*begins[1:], len(order)]):
        rows = order[begin:end]
        yield int(keys[rows[0]]), taken(table, rows)


def partition_of(values: np.ndarray, partitions: int) -> np.ndarray:
    """Returns numbers below `partitions`, equal for equal 64-bit values and evenly spread."""
    # Wraps at 64 bits. The upper half is used: the low bits of a multiple depend on the low bits of
    # the number only, so that values with equal low bits would share a partition.
    mixed = values.astype(np.uint64) * _MIXER
    return ((mixed >> np.uint64(32)) % np.uint64(partitions)).astype(np.int64)


def part_of(numbers: np.ndarray) -> np.ndarray:
    """Returns the part of each document number."""
    return numbers >> ROW_BITS


def write_table(path: epath.PathLike, table: Table) -> None:
    """Writes a Parquet file, completely or not at all; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer, compression="zstd")
    write_file(path, buffer.getvalue())


def read_table(path: epath.PathLike, *names: str) -> Table:
    """Returns the named columns of a Parquet file; values that are not numbers are objects."""
    with epath.Path(path).open("rb") as file:
        table = pq.read_table(file, columns=list(names))
    return {name: table[name].to_numpy() for name in names}
