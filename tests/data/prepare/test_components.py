"""Star contraction against scipy's connected components."""

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array, csgraph

from codellama_jax.data.prepare import components, parts, records, tables
from codellama_jax.data.prepare.runners import Runner

PARTS = 3


def number_of(node):
    """The document number of a small node number, in one of PARTS parts."""
    return records.document_number(node % PARTS, node // PARTS)


def write_edges(folder, pairs):
    """Writes edges of small node numbers by the part of the larger end."""
    numbers = [sorted((number_of(a), number_of(b))) for a, b in pairs if a != b]
    if not numbers:
        return
    smaller, larger = np.array(numbers, np.int64).T
    edges = components.edge_table(larger, smaller)
    for part, table in tables.split(edges, tables.part_of(edges["larger"])):
        tables.write_table(folder / parts.part_name(part), table)


def labels(folder):
    """The smallest node of the component of each node that the files hold."""
    result = {}
    for path in components.edge_files(folder):
        edges = tables.read_table(path, "larger", "smaller")
        assert len(set(edges["larger"].tolist())) == len(edges["larger"])
        result |= zip(edges["larger"].tolist(), edges["smaller"].tolist())
    return result


def expected_labels(pairs):
    """The same from scipy."""
    if not pairs:
        return {}
    a, b = np.array(pairs).T
    count = 1 + max(a.max(), b.max())
    graph = coo_array((np.ones(len(a)), (a, b)), (count, count))
    _, component = csgraph.connected_components(graph, directed=False)
    members = {}
    for node, label in enumerate(component.tolist()):
        members.setdefault(label, []).append(number_of(node))
    result = {}
    for nodes in members.values():
        result |= {node: min(nodes) for node in nodes if node != min(nodes)}
    return result


def check(pairs, folder, partitions=2, runner=None):
    write_edges(folder / "edges", pairs)
    last, rounds = components.connected_components(
        runner, folder / "edges", folder / "work", partitions
    )
    assert labels(last) == expected_labels(pairs)
    return rounds


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(2, 30).flatmap(
        lambda n: st.lists(st.tuples(st.integers(0, n), st.integers(0, n)), max_size=40)
    ),
    st.integers(1, 4),
)
def test_components_equal_scipys(local_shuffle, tmp_path_factory, pairs, partitions):
    check(pairs, epath.Path(tmp_path_factory.mktemp("graph")), partitions)


def test_components_on_beam_equal_scipys(folder):
    generator = np.random.default_rng(0)
    # Random graphs near the threshold where large components appear.
    pairs = generator.integers(0, 400, (190, 2)).tolist()
    check(pairs, folder, partitions=3, runner=Runner())


def test_a_long_chain_takes_few_rounds(local_shuffle, folder):
    order = np.random.default_rng(1).permutation(1000)
    rounds = check([*zip(order[:-1].tolist(), order[1:].tolist())], folder)
    assert 3 <= rounds <= 12


def test_a_star_is_left_as_it_is_after_one_round(local_shuffle, folder):
    assert check([(0, node) for node in range(1, 300)], folder) == 1


def test_without_edges_there_is_no_round(folder):
    assert check([], folder) == 0


def test_complete_rounds_are_not_repeated(local_shuffle, folder, monkeypatch):
    pairs = [(0, 5), (5, 3), (3, 9), (9, 1)]
    rounds = check(pairs, folder)
    monkeypatch.setattr(tables, "shuffle", None)
    assert check(pairs, folder) == rounds
