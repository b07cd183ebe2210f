"""Connected components of a graph that is larger than memory, by alternating star contractions.

Edges are tables with the columns `larger` and `smaller`, int64 document numbers. The files of a
folder hold the edges by the part of their larger end. A round of large-star and small-star
(Kiveris et al. 2014, "Connected Components in MapReduce and Beyond") connects every node to smaller
ones, and keeps the components. The edges no longer change once every node is connected to the
smallest of its component only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from codellama_jax.data.prepare.duplicates import tables
from codellama_jax.data.prepare.duplicates.tables import Table
from codellama_jax.data.prepare.parts import part_name
from codellama_jax.data.prepare.runners import Runner
from codellama_jax.system.files import read_state, write_file, write_json


def connected_components(
    runner: Runner, edges: epath.Path, work: epath.Path, partitions: int
) -> tuple[epath.Path, int]:
    """Connects every node with the smallest node of its component.

    A worker holds the edges of one partition. The edges of one node are never divided, so the
    largest component bounds the memory too, with about 100 bytes per node.

    Args:
        runner: runs the rounds.
        edges: folder of edge files. Without files there is nothing to do.
        work: folder for the rounds; complete rounds in it are not repeated.
        partitions: number of groups of nodes; it does not change the result.

    Returns:
        The folder of the last round, and the number of rounds. In the files `smaller` is the
        smallest node of the component, which itself is no `larger`.
    """
    rounds, changed = 0, bool(edge_files(edges))
    # A fixed point ends the loop. It is reached because a round only ever moves an edge to a
    # smaller node, and there every node leads to the smallest of its component.
    while changed:
        rounds += 1
        output = work / f"round-{rounds:03d}"
        once(output, functools.partial(_contract, runner, edges, output, partitions))
        edges, changed = output, bool(list(output.glob("changed-*")))
    return edges, rounds


def edge_files(folder: epath.Path) -> list[str]:
    """Returns the paths of a folder's edge files, in order."""
    return sorted(str(path) for path in folder.glob("part-*.parquet"))


def once(folder: epath.Path, work: Callable[[], None]) -> None:
    """Calls `work`, which writes files to `folder`, unless it did so completely before."""
    if read_state(folder / "done.json") is None:
        work()
        write_json(folder / "done.json", {})


def edge_table(larger: np.ndarray, smaller: np.ndarray) -> Table:
    """Returns the distinct edges between two arrays of nodes, in order."""
    return tables.sorted_rows({"larger": larger, "smaller": smaller}, "larger", "smaller")


def _contract(runner: Runner, edges: epath.Path, output: epath.Path, partitions: int) -> None:
    """Runs one round: a large-star and a small-star."""
    tables.shuffle(
        runner,
        edge_files(edges),
        ReadBothWays(partitions),
        LargeStar(partitions),
        small_star,
        WriteRound(str(output), str(edges)),
    )


@dataclass(frozen=True)
class ReadBothWays:
    """Yields the edges of a file from both ends, by the partition of their `node`."""

    partitions: int

    def __call__(self, path: str) -> Iterator[tuple[int, Table]]:
        edges = tables.read_table(path, "larger", "smaller")
        # The files hold an edge once, under its larger end. A star needs all neighbors of a node,
        # so both directions are sent, and the edges of a node meet in one partition.
        node = np.concatenate([edges["larger"], edges["smaller"]])
        neighbor = np.concatenate([edges["smaller"], edges["larger"]])
        partition = tables.partition_of(node, self.partitions)
        yield from tables.split({"node": node, "neighbor": neighbor}, partition)


@dataclass(frozen=True)
class LargeStar:
    """Connects the larger neighbors of a node with the smallest of it and all its neighbors."""

    partitions: int

    def __call__(self, group: tuple[int, Iterable[Table]]) -> Iterator[tuple[int, Table]]:
        _, values = group
        edges = tables.sorted_rows(tables.concatenated(values), "node", "neighbor")
        node, neighbor = edges["node"], edges["neighbor"]
        # `least` may be the node itself, so that the edges to its larger neighbors survive where it
        # is the smallest.
        least = np.minimum(tables.smallest(neighbor, tables.starts(node)), node)
        # Only larger neighbors are moved. The edges to smaller neighbors are handled where these
        # are the node, so no edge of the component is lost.
        larger = neighbor > node
        result = edge_table(neighbor[larger], least[larger])
        yield from tables.split(result, tables.partition_of(result["larger"], self.partitions))


def small_star(group: tuple[int, Iterable[Table]]) -> Iterator[tuple[int, Table]]:
    """Connects each node and its smaller neighbors with the smallest of these."""
    _, values = group
    # Here an edge is only grouped under its larger end, so all neighbors are smaller than the node.
    edges = tables.sorted_rows(tables.concatenated(values), "larger", "smaller")
    node, neighbor = edges["larger"], edges["smaller"]
    least = tables.smallest(neighbor, tables.starts(node))
    others = neighbor != least
    # The node itself, and all its smaller neighbors but the least, now point to the least: the
    # node's own edges to the others become edges between them and the least.
    result = edge_table(
        np.concatenate([node, neighbor[others]]), np.concatenate([least, least[others]])
    )
    yield from tables.split(result, tables.part_of(result["larger"]))


@dataclass(frozen=True)
class WriteRound:
    """Writes the edges of a part, and an empty file `changed-*` where they differ from `before`."""

    output: str
    before: str

    def __call__(self, group: tuple[int, Iterable[Table]]) -> Iterable[Any]:
        part, values = group
        edges = tables.sorted_rows(tables.concatenated(values), "larger", "smaller")
        before = epath.Path(self.before) / part_name(part)
        # Beam's counters do not exist on every runner, so a marker file reports that a part
        # changed. A part never loses all of its edges: a node with a smaller neighbor keeps one.
        if not before.exists() or not _are_equal(edges, tables.read_table(before, *edges)):
            write_file(epath.Path(self.output) / f"changed-{part:06d}", b"")
        tables.write_table(epath.Path(self.output) / part_name(part), edges)
        return ()


def _are_equal(a: Table, b: Table) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)
