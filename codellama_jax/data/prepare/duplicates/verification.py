"""Drops edges between documents whose true Jaccard index is below the threshold.

An edge leads to the smallest document of a bucket. A member that is similar to another member of
the bucket, but not to the smallest, loses this edge, and is found by its other bands or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from codellama_jax.data.prepare.duplicates import components, tables
from codellama_jax.data.prepare.duplicates.minhash import (
    NearDuplicates,
    jaccard,
    shingle_hashes,
    shingles,
)
from codellama_jax.data.prepare.duplicates.tables import Table
from codellama_jax.data.prepare.parts import part_name, read_rows
from codellama_jax.data.prepare.records import document_number, place_of
from codellama_jax.data.prepare.runners import Runner


def verify_edges(
    runner: Runner,
    documents: dict[int, str],
    params: NearDuplicates,
    edges: epath.Path,
    output: epath.Path,
) -> None:
    """Writes the edges that are between equal texts or reach the threshold.

    The shingles are compared as their 32-bit hashes. Memory of a worker is bounded by the edges of
    a part and by the hashes of two documents.

    Args:
        runner: runs the pipeline.
        documents: the paths of the documents by part number.
        params: how to make shingles, and the threshold.
        edges: folder of the edges, with the column `equal`.
        output: folder of the edges that are left.
    """
    tables.shuffle(
        runner,
        components.edge_files(edges),
        read_ends,
        HashTexts(documents, params),
        Compare(params.threshold),
        WriteVerified(str(output)),
    )


def read_ends(path: str) -> Iterator[tuple[int, Table]]:
    """Yields the edges of a file by the part of either end, whose document is to be read."""
    edges = tables.read_table(path, "larger", "smaller", "equal")
    # Both ends of an edge are usually in different parts. Each part is read once, for all the
    # documents of it that any edge needs, and their hashes travel to the smaller end of the edge.
    yield from tables.split(edges, tables.part_of(edges["larger"]))
    # Equal texts have a Jaccard index of 1, so their edges need no shingles.
    near = tables.taken(edges, ~edges["equal"])
    for part, table in tables.split(near, tables.part_of(near["smaller"])):
        yield part, {"root": np.unique(table["smaller"])}


@dataclass(frozen=True)
class HashTexts:
    """Yields (smaller end of an edge, (number, hashes of the shingles of that document)).

    Edges between equal texts have the key -1 - part, and pass as they are.
    """

    documents: dict[int, str]
    params: NearDuplicates

    def __call__(self, group: tuple[int, Iterable[Table]]) -> Iterator[tuple[int, Any]]:
        part, values = group
        targets: dict[int, list[int]] = {}  # keys that need the shingles of a document, by row
        for table in values:
            if "root" in table:
                for root in table["root"].tolist():
                    targets.setdefault(place_of(root)[1], []).append(root)
                continue
            # These keys are negative, those of the shingles are document numbers.
            yield -1 - part, tables.taken(table, table["equal"])
            near = tables.taken(table, ~table["equal"])
            for larger, smaller in zip(near["larger"].tolist(), near["smaller"].tolist()):
                targets.setdefault(place_of(larger)[1], []).append(smaller)
        if not targets:
            return
        # The shingles of a document are computed once, however many edges it has.
        for row, document in enumerate(read_rows(self.documents[part], ("text",))):
            if row in targets:
                hashes = shingle_hashes(shingles(document["text"], self.params))
                number = document_number(part, row)
                for root in sorted(set(targets[row])):
                    yield root, (number, hashes)


@dataclass(frozen=True)
class Compare:
    """Yields the edges to a document that reach the threshold, by the part of the larger end."""

    threshold: float

    def __call__(self, group: tuple[int, Iterable[Any]]) -> Iterator[tuple[int, Table]]:
        root, values = group
        if root < 0:
            for table in values:
                yield -1 - root, {name: table[name] for name in ("larger", "smaller")}
            return
        # The values are read twice, because a bucket of many documents may not fit into memory.
        # The root's hashes may arrive after those of the members: Beam orders no values of a key.
        shingles_of_root = next(hashes for number, hashes in values if number == root)
        for number, hashes in values:
            if number != root and jaccard(hashes, shingles_of_root) >= self.threshold:
                edge = {"larger": np.array([number]), "smaller": np.array([root])}
                yield place_of(number)[0], edge


@dataclass(frozen=True)
class WriteVerified:
    """Writes the edges whose larger end is in a part."""

    output: str

    def __call__(self, group: tuple[int, Iterable[Table]]) -> Iterable[Any]:
        part, values = group
        edges = tables.sorted_rows(tables.concatenated(values), "larger", "smaller")
        if len(edges["larger"]):
            tables.write_table(epath.Path(self.output) / part_name(part), edges)
        return ()
