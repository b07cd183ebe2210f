"""Finds exact and near-duplicates among the documents, and chooses the one of a cluster to keep.

A cluster is a connected component of documents that share a text or a band. Of a cluster the
document with the most stars is kept, and among these the first in the order of the input. Unknown
stars count as fewest. The files of the result do not depend on the runner, the number of workers or
the order of their work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from etils import epath

from codellama_jax.data.prepare.duplicates import candidates, components, tables, verification
from codellama_jax.data.prepare.duplicates.minhash import NearDuplicates
from codellama_jax.data.prepare.duplicates.tables import Table
from codellama_jax.data.prepare.parts import part_name, read_rows
from codellama_jax.data.prepare.records import ROW_BITS, place_of
from codellama_jax.data.prepare.runners import Runner
from codellama_jax.system.files import read_json, read_state, write_json

ROWS_PER_PARTITION = 250_000  # documents, about: 60 MB with 25 bands
SAMPLED_PARTS = 16  # whose rows are counted, to estimate the number of documents
LARGEST_CLUSTERS = 20  # that the summary lists
SHOWN_MEMBERS = 5  # of each of them

_ORDER = ("rank", "number")  # of documents that could be kept: the first is


def find_duplicates(
    runner: Runner,
    documents: Sequence[epath.PathLike],
    params: NearDuplicates,
    exact: bool,
    folder: epath.PathLike,
) -> dict[str, Any]:
    """Writes the rows to drop of each part to `folder/part-NNNNNN.parquet`, and a summary.

    The columns are `row` (int64), `kind` ("exact" if the text equals that of a document which is
    preferred to this one, else "near"), `kept` (number of the document that is kept instead) and
    `cluster` (smallest number in the cluster). A part without duplicates has no file. The work is
    complete when `folder/summary.json` exists, and does not start again then. After a kill complete
    rounds are not repeated. A folder belongs to one set of documents and parameters.

    Args:
        runner: runs the pipelines.
        documents: files with the columns of parts.DOCUMENTS, each named by `part_name`.
        params: the near-duplicates; none are searched where they are not enabled.
        exact: whether documents of equal text are duplicates.
        folder: the output.

    Returns:
        The summary: numbers of `clusters`, `exact` and `near` duplicates, `sizes` (number of
        clusters by size), `languages` (exact and near duplicates by language), `largest` (size, id
        of the kept and of the first members of the largest clusters) and `rounds` of contraction.
    """
    folder = epath.Path(folder)
    work = folder / "work"
    summary = read_state(folder / "summary.json")
    if summary is None:
        summary = _find(runner, documents, params, exact, folder, work)
        write_json(folder / "summary.json", summary)
    work.rmtree(missing_ok=True)
    return summary


def read_duplicates(folder: epath.PathLike, part: int) -> Table:
    """Returns the columns `row`, `kind`, `kept` and `cluster` of a part, in the order of rows."""
    path = epath.Path(folder) / part_name(part)
    names = ("row", "kind", "kept", "cluster")
    if path.exists():
        return tables.read_table(path, *names)
    return {name: np.zeros(0, object if name == "kind" else np.int64) for name in names}


def _find(
    runner: Runner,
    documents: Sequence[epath.PathLike],
    params: NearDuplicates,
    exact: bool,
    folder: epath.Path,
    work: epath.Path,
) -> dict[str, Any]:
    """Does the work of find_duplicates but for the file of the summary, which it returns."""
    # Document numbers hold the part number of the file's name, not the position in this list.
    paths = {_part_number(path): str(path) for path in documents}
    partitions = _partitions(list(paths.values()))
    edges = _edges(runner, paths, params, exact, work, partitions)
    stars, rounds = components.connected_components(runner, edges, work, partitions)
    tables.shuffle(
        runner,
        components.edge_files(stars),
        read_members,
        Describe(paths, partitions),
        choose,
        WriteDuplicates(str(folder)),
    )
    return _summary(work, paths) | {"rounds": rounds}


def _edges(
    runner: Runner,
    documents: dict[int, str],
    params: NearDuplicates,
    exact: bool,
    work: epath.Path,
    partitions: int,
) -> epath.Path:
    """Returns the folder of the edges between duplicates, which it writes unless it is complete."""
    edges = work / "candidates"

    def find() -> None:
        if exact or params.enabled:
            candidates.find_candidates(runner, documents, params, exact, edges, partitions)

    components.once(edges, find)
    if not (params.enabled and params.verify_jaccard):
        return edges
    verified = work / "verified"

    def verify() -> None:
        verification.verify_edges(runner, documents, params, edges, verified)

    components.once(verified, verify)
    return verified


def _part_number(path: epath.PathLike) -> int:
    return int(epath.Path(path).stem.removeprefix("part-"))


def _partitions(paths: list[str]) -> int:
    """Returns a number of partitions of about ROWS_PER_PARTITION documents."""
    step = max(1, len(paths) // SAMPLED_PARTS)
    sampled = paths[::step]
    rows = 0
    for path in sampled:
        with epath.Path(path).open("rb") as file:
            rows += pq.ParquetFile(file).metadata.num_rows
    # Parts have about the same size in bytes, so that a sample of files suffices. The number of
    # partitions changes memory and speed only, never the result.
    estimate = rows * len(paths) // max(1, len(sampled))
    return 1 + estimate // ROWS_PER_PARTITION


def read_members(path: str) -> Iterator[tuple[int, Table]]:
    """Yields the `number` and `cluster` of the documents in clusters, by their part."""
    edges = tables.read_table(path, "larger", "smaller")
    # An edge file names the smallest document of a cluster only as `smaller`. It needs a row too,
    # because it may be the one with the most stars, or be dropped.
    first = np.unique(edges["smaller"])
    members = {
        "number": np.concatenate([edges["larger"], first]),
        "cluster": np.concatenate([edges["smaller"], first]),
    }
    yield from tables.split(members, tables.part_of(members["number"]))


@dataclass(frozen=True)
class Describe:
    """Adds what the choice needs to the members of a part, and yields them by their cluster."""

    documents: dict[int, str]
    partitions: int

    def __call__(self, group: tuple[int, Iterable[Table]]) -> Iterator[tuple[int, Table]]:
        part, values = group
        # The first document of a cluster comes from the file of every other member.
        members = tables.sorted_rows(tables.concatenated(values), "number")
        rows = set((members["number"] & (1 << ROW_BITS) - 1).tolist())
        columns = ("digest", "stars", "language")
        # A part file is read in order and only few rows are used. `selected` is in the order of
        # rows, which is that of `members`, sorted by number within one part.
        every = enumerate(read_rows(self.documents[part], columns))
        selected = [document for row, document in every if row in rows]
        members |= candidates.digest_columns([document["digest"] for document in selected])
        # Negated, so that ascending order puts the most stars first; unknown stars, -1, come last.
        members["rank"] = -np.array([document["stars"] for document in selected], np.int64)
        members["language"] = np.array([document["language"] for document in selected])
        yield from tables.split(members, tables.partition_of(members["cluster"], self.partitions))


def choose(group: tuple[int, Iterable[Table]]) -> Iterator[tuple[int, Any]]:
    """Yields the documents to drop by part, and with a negative key a summary of the partition."""
    partition, values = group
    members = tables.sorted_rows(tables.concatenated(values), "cluster", *_ORDER)
    new_cluster = tables.starts(members["cluster"])
    # Index of each row's cluster, which spreads the first row of a cluster over all its rows.
    index = np.cumsum(new_cluster) - 1
    members["kept"] = members["number"][new_cluster][index]
    # A copy of a dropped text is an exact duplicate even if the text itself is dropped only as a
    # near-duplicate. So the first document of each text counts as "near", the others as "exact".
    texts = tables.sorted_rows(members, "cluster", "high", "low", *_ORDER)
    preferred = tables.starts(texts["cluster"], texts["high"], texts["low"])
    texts["kind"] = np.where(preferred, "near", "exact")
    dropped = tables.taken(texts, texts["number"] != texts["kept"])
    # Negative keys pass the summary through the same grouping; part numbers are at least 0.
    yield -1 - partition, _partition_summary(members, dropped)
    columns = {name: dropped[name] for name in ("number", "kind", "kept", "cluster")}
    yield from tables.split(columns, tables.part_of(columns["number"]))


@dataclass(frozen=True)
class WriteDuplicates:
    """Writes the documents to drop of a part, or the summary of a partition."""

    folder: str

    def __call__(self, group: tuple[int, Iterable[Any]]) -> Iterable[Any]:
        part, values = group
        if part < 0:
            (summary,) = values
            write_json(epath.Path(self.folder) / "work" / f"summary-{-1 - part:06d}.json", summary)
            return ()
        dropped = tables.sorted_rows(tables.concatenated(values), "number")
        row = dropped.pop("number") & (1 << ROW_BITS) - 1
        tables.write_table(epath.Path(self.folder) / part_name(part), {"row": row} | dropped)
        return ()


def _partition_summary(members: Table, dropped: Table) -> dict[str, Any]:
    """Returns counts of the clusters of a partition, and the largest of them.

    Args:
        members: the documents of all clusters in the order of clusters, the kept ones first.
        dropped: those that are not kept, with their `kind`.
    """
    begins = np.flatnonzero(tables.starts(members["cluster"]))
    sizes = np.diff(np.append(begins, len(members["cluster"])))
    languages = Counter(zip(dropped["language"].tolist(), dropped["kind"].tolist()))
    largest = []
    for index in np.lexsort([members["cluster"][begins], -sizes])[:LARGEST_CLUSTERS]:
        rows = slice(begins[index], begins[index] + sizes[index])
        numbers = np.sort(members["number"][rows])[:SHOWN_MEMBERS]
        kept = int(members["kept"][begins[index]])
        largest.append({"size": int(sizes[index]), "kept": kept, "members": numbers.tolist()})
    return {
        "sizes": [
            [int(size), int(count)] for size, count in zip(*np.unique(sizes, return_counts=True))
        ],
        "languages": [[*key, count] for key, count in sorted(languages.items())],
        "largest": largest,
    }


def _summary(work: epath.Path, documents: dict[int, str]) -> dict[str, Any]:
    """Returns the sum of the partitions' summaries."""
    sizes: Counter[int] = Counter()
    languages: dict[str, dict[str, int]] = {}
    largest: list[dict[str, Any]] = []
    for path in sorted(work.glob("summary-*.json")):
        partition = read_json(path)
        for size, count in partition["sizes"]:
            sizes[size] += count
        for language, kind, count in partition["languages"]:
            languages.setdefault(language, {"exact": 0, "near": 0})[kind] += count
        # A partition lists its LARGEST_CLUSTERS clusters, so the largest of all are among them. The
        # order does not depend on the partitions, because ties go to the smaller number.
        largest += partition["largest"]
        # The first member is the smallest number of the cluster.
        largest.sort(key=_size_order)
        del largest[LARGEST_CLUSTERS:]
    numbers = {number for cluster in largest for number in (cluster["kept"], *cluster["members"])}
    ids = _ids(numbers, documents)
    for cluster in largest:
        cluster["kept"] = ids[cluster["kept"]]
        cluster["members"] = [ids[number] for number in cluster["members"]]
    return {
        "clusters": sum(sizes.values()),
        "exact": sum(counts["exact"] for counts in languages.values()),
        "near": sum(counts["near"] for counts in languages.values()),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "languages": {name: languages[name] for name in sorted(languages)},
        "largest": largest,
    }


def _size_order(cluster: dict[str, Any]) -> tuple[int, int]:
    return -cluster["size"], cluster["members"][0]


def _ids(numbers: set[int], documents: dict[int, str]) -> dict[int, str]:
    """Returns the ids of documents by their numbers."""
    rows: dict[int, set[int]] = {}
    for number in numbers:
        part, row = place_of(number)
        rows.setdefault(part, set()).add(row)
    # Only the documents that the summary shows are looked up: ids of all would not fit in memory.
    ids = {}
    for part in sorted(rows):
        for row, document in enumerate(read_rows(documents[part], ("id",))):
            if row in rows[part]:
                ids[part << ROW_BITS | row] = document["id"]
    return ids
