"""Edges between documents that share a text or a band of their MinHash signatures.

Documents of equal text, and of an equal band, form a bucket. Every member of a bucket gets an edge
to the one with the smallest number, so that the number of edges does not grow with the square of a
bucket. Only one document of each text takes part in the buckets of bands.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from codellama_jax.data.prepare.duplicates import tables
from codellama_jax.data.prepare.duplicates.minhash import NearDuplicates
from codellama_jax.data.prepare.duplicates.tables import Table
from codellama_jax.data.prepare.parts import part_name, read_rows
from codellama_jax.data.prepare.records import document_number
from codellama_jax.data.prepare.runners import Runner


def find_candidates(
    runner: Runner,
    documents: dict[int, str],
    params: NearDuplicates,
    exact: bool,
    output: epath.Path,
    partitions: int,
) -> None:
    """Writes the edges of all buckets: `larger`, `smaller`, and whether the texts are equal.

    Memory of a worker is bounded by the rows of a part or partition: about 250 bytes per document
    with 25 bands, and 16 bytes per member of a bucket, which is never divided.

    Args:
        runner: runs the pipeline.
        documents: the paths of the documents by part number.
        params: the near-duplicates; their bands are in the documents.
        exact: whether documents of equal text are duplicates; otherwise only bands count.
        output: folder of the edges.
        partitions: number of groups into which texts and bands are divided.
    """
    tables.shuffle(
        runner,
        list(documents.items()),
        ReadKeys(params.banding()[0] if params.enabled else 0, params.scope, partitions),
        GroupTexts(exact, partitions),
        group_bands,
        WriteEdges(str(output)),
    )


@dataclass(frozen=True)
class ReadKeys:
    """Yields the numbers, digests and bands of a part's documents, partitioned by the digest."""

    bands: int
    scope: str
    partitions: int

    def __call__(self, item: tuple[int, str]) -> Iterator[tuple[int, Table]]:
        part, path = item
        rows = list(read_rows(path, ("digest", "bands", "language")))
        if not rows:
            return
        # A text with fewer tokens than a shingle has empty `bands`. Such a document can still be an
        # exact duplicate, so its row stays in the table and only its bands are masked.
        packed = [row["bands"] if self.bands else b"" for row in rows]
        has_bands = np.array([bool(bands) for bands in packed])
        bands = np.zeros((len(rows), self.bands), np.uint64)
        # The hashes of all bands are 8 bytes each, one after another: [documents with bands,
        # bands]. reshape accepts no -1 beside a 0, hence the 1 where there are no bands.
        bands[has_bands] = np.frombuffer(b"".join(packed), np.uint64).reshape(-1, self.bands or 1)
        table = {
            "number": document_number(part, 0) + np.arange(len(rows)),
            **digest_columns([row["digest"] for row in rows]),
            "language": np.zeros(len(rows), np.uint64),
            "has_bands": has_bands,
            "bands": bands,
        }
        if self.scope == "language":
            table["language"] = np.array([_hash(row["language"]) for row in rows], np.uint64)
        # Partitioned by half of the digest, so that all copies of a text meet in one worker.
        yield from tables.split(table, tables.partition_of(table["high"], self.partitions))


@dataclass(frozen=True)
class GroupTexts:
    """Yields the edges between equal texts, and the bands of one document per text and language.

    The key of edges is -1 - part, that of bands is band * partitions + partition.
    """

    exact: bool
    partitions: int

    def __call__(self, group: tuple[int, Iterable[Table]]) -> Iterator[tuple[int, Table]]:
        table = tables.concatenated(group[1])
        if self.exact:
            # lexsort takes its most significant key last: sorted by text, then language, then
            # number.
            order = np.lexsort([table[k] for k in ("number", "language", "low", "high")])
            table = tables.taken(table, order)
            new_text = tables.starts(table["high"], table["low"])
            first = tables.smallest(table["number"], new_text)
            # The edge leads to the smallest number of any language: copies of a text are duplicates
            # even where near-duplicates are only searched within a language.
            edges = _edges(table["number"], first, True)
            # Finished edges travel through the next grouping beside the bands. Negative keys cannot
            # collide with the keys of bands, which are at least 0.
            yield from tables.split(edges, -1 - tables.part_of(edges["larger"]))
            # Copies of a text agree in every band and are connected by now: one of them is enough,
            # and keeps the buckets of much copied files small. A text in two languages is compared
            # with the documents of both.
            new_language = new_text | tables.starts(table["language"])
            table = tables.taken(table, new_language)
        table = tables.taken(table, table["has_bands"])
        for band in range(table["bands"].shape[1]):
            # Equal bands of two languages must differ where the scope is a language.
            hashes = table["bands"][:, band] ^ table["language"]
            # Each band is a separate hash table of the LSH: equal hashes of two different bands
            # must not meet, so the band is part of the key.
            keys = band * self.partitions + tables.partition_of(hashes, self.partitions)
            yield from tables.split({"hash": hashes, "number": table["number"]}, keys)


def group_bands(group: tuple[int, Iterable[Table]]) -> Iterator[tuple[int, Table]]:
    """Yields the edges of a partition of a band, and those between equal texts, by part."""
    key, values = group
    table = tables.concatenated(values)
    if key < 0:
        yield -1 - key, table
        return
    # A bucket is a run of equal hashes in the sorted table. A partition holds many buckets.
    table = tables.sorted_rows(table, "hash", "number")
    first = tables.smallest(table["number"], tables.starts(table["hash"]))
    edges = _edges(table["number"], first, False)
    yield from tables.split(edges, tables.part_of(edges["larger"]))


@dataclass(frozen=True)
class WriteEdges:
    """Writes the distinct edges whose larger end is in a part."""

    output: str

    def __call__(self, group: tuple[int, Iterable[Table]]) -> Iterable[Any]:
        part, values = group
        edges = tables.sorted_rows(tables.concatenated(values), "larger", "smaller", "equal")
        tables.write_table(epath.Path(self.output) / part_name(part), edges)
        return ()


def digest_columns(digests: list[bytes]) -> Table:
    """Returns 16-byte digests as two columns of 64-bit integers, because NumPy sorts these."""
    halves = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    return {"high": halves[:, 0], "low": halves[:, 1]}


def _edges(number: np.ndarray, first: np.ndarray, equal: bool) -> Table:
    """Returns edges from numbers to the first of their buckets."""
    mask = number != first
    return {"larger": number[mask], "smaller": first[mask], "equal": np.full(mask.sum(), equal)}


@functools.cache
def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
