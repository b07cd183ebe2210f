"""Planted duplicates, datasketch's LSH on the same signatures, and equal files on all runners."""

import collections
import random

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from etils import epath

from codellama_jax.data.prepare import candidates, duplicates, minhash, records
from codellama_jax.data.prepare.minhash import NearDuplicates
from codellama_jax.data.prepare.runners import Runner

NEAR = NearDuplicates(enabled=True)
OFF = NearDuplicates(enabled=False)


def words(seed, count=400):
    generator = random.Random(seed)
    return [f"w{generator.randrange(10_000)}" for _ in range(count)]


def text(seed, changes=()):
    """A text of 400 random words, some of them replaced."""
    tokens = words(seed)
    for position in changes:
        tokens[position] = f"x{position}"
    return " ".join(tokens)


def python(*texts, stars=-1):
    return [(item, "Python", stars) for item in texts]


def find(paths, folder, params=NEAR, exact=True, runner=None):
    return duplicates.find_duplicates(runner or Runner(), paths, params, exact, folder)


def dropped(folder, paths):
    """(kind, kept, cluster) by document, all as positions in the input of 4 documents per part."""
    result = {}
    for part in range(len(paths)):
        table = duplicates.read_duplicates(folder, part)
        columns = zip(*(table[name].tolist() for name in ("row", "kind", "kept", "cluster")))
        for row, kind, kept, cluster in columns:
            result[part * 4 + row] = (kind, position(kept), position(cluster))
    return result


def position(number):
    part, row = records.place_of(number)
    return part * 4 + row


def contents(folder):
    """The bytes of all files of a folder by name."""
    return {path.name: path.read_bytes() for path in epath.Path(folder).iterdir()}


@pytest.fixture
def corpus():
    """Documents with exact, near and chained duplicates: positions in the comments."""
    return [
        *python(text(1), text(2), text(3), text(4)),  # 0-3
        *python(text(1), text(2, [7]), text(5), text(1)),  # 4 = 0, 5 ~ 1, 7 = 0
        *python("a b", "a b", "c d", ""),  # 8 = 9; short texts are no near-duplicates
        *python(text(6, range(0, 320, 16)), text(6), text(6, range(8, 320, 16))),  # 12 ~ 13 ~ 14
        *python(text(7)),  # 15
    ]


def test_exact_near_and_chained_duplicates_are_found(
    local_shuffle, write_documents, tmp_path, corpus
):
    params = NearDuplicates(True, threshold=0.5, bands=0, rows=0)
    paths = write_documents(corpus, params)
    summary = find(paths, tmp_path / "out", params)
    assert dropped(tmp_path / "out", paths) == {
        4: ("exact", 0, 0),
        5: ("near", 1, 1),
        7: ("exact", 0, 0),
        9: ("exact", 8, 8),
        13: ("near", 12, 12),
        14: ("near", 12, 12),
    }
    assert summary["clusters"] == 4 and (summary["exact"], summary["near"]) == (3, 3)
    assert summary["sizes"] == {"2": 2, "3": 2}
    assert summary["languages"] == {"Python": {"exact": 3, "near": 3}}
    assert summary["largest"][0] == {
        "size": 3,
        "kept": "files/0",
        "members": ["files/0", "files/4", "files/7"],
    }
    assert [cluster["size"] for cluster in summary["largest"]] == [3, 3, 2, 2]


def test_ends_of_a_chain_are_not_similar_themselves():
    params = NearDuplicates()
    ends = [text(6, range(0, 320, 16)), text(6), text(6, range(8, 320, 16))]
    first, middle, last = (minhash.shingle_hashes(minhash.shingles(t, params)) for t in ends)
    assert minhash.jaccard(first, middle) > 0.55 < minhash.jaccard(middle, last)
    assert minhash.jaccard(first, last) < 0.4


@pytest.mark.parametrize(
    ("params", "exact", "expected"),
    [
        (OFF, True, {4: "exact", 7: "exact", 9: "exact"}),
        (NEAR, False, {4: "exact", 5: "near", 7: "exact"}),
        (OFF, False, {}),
    ],
)
def test_each_step_can_be_off(
    local_shuffle, write_documents, tmp_path, corpus, params, exact, expected
):
    paths = write_documents(corpus[:12], params)
    find(paths, tmp_path / "out", params, exact)
    found = dropped(tmp_path / "out", paths)
    assert {number: kind for number, (kind, *_) in found.items()} == expected


def test_the_document_with_most_stars_is_kept_then_the_first(
    local_shuffle, write_documents, tmp_path
):
    stars = [(-1, 3, 7, 7), (0, 0, -1, 0), (5, -1, -1, 2)]
    variants = [text(0), text(0, [3]), text(0), text(0, [3])]
    documents = [
        (variant.replace("w", f"v{group}"), "Python", count)
        for group, counts in enumerate(stars)
        for variant, count in zip(variants, counts)
    ]
    paths = write_documents(documents, NEAR)
    find(paths, tmp_path / "out")
    assert dropped(tmp_path / "out", paths) == {
        # Of either text one document counts as near, unless it is the kept one's.
        0: ("exact", 2, 0),
        1: ("exact", 2, 0),
        3: ("near", 2, 0),
        5: ("near", 4, 4),
        6: ("exact", 4, 4),
        7: ("exact", 4, 4),
        9: ("exact", 8, 8),
        10: ("exact", 8, 8),
        11: ("near", 8, 8),
    }


def test_the_scope_of_a_language(local_shuffle, write_documents, tmp_path):
    both = [(text(1), "C", 0), (text(1), "C++", 0)]
    near = [(text(1, [5]), "C++", 0), (text(2), "C", 0), (text(2, [5]), "C++", 0)]
    for scope, expected in (("global", {1, 2, 4}), ("language", {1, 2})):
        params = NearDuplicates(True, scope=scope)
        paths = write_documents(both + near, params, name=scope)
        # Equal texts are duplicates in any language. The second is similar to 2 in its language.
        summary = find(paths, tmp_path / f"{scope}-out", params)
        assert set(dropped(tmp_path / f"{scope}-out", paths)) == expected
        assert summary["languages"]["C++"] == {"exact": 1, "near": len(expected) - 1}


def test_verification_drops_edges_below_the_threshold(local_shuffle, write_documents, tmp_path):
    # 20 bands of 2 find pairs of a Jaccard index far below 0.9.
    pairs = [text(1), text(1, range(100)), text(2), text(2, [9]), text(3), text(3)]
    for verify, expected in ((False, {1, 3, 5}), (True, {3, 5})):
        params = NearDuplicates(True, threshold=0.9, bands=20, rows=2, verify_jaccard=verify)
        paths = write_documents(python(*pairs), params, name=f"verify-{verify}")
        find(paths, tmp_path / f"out-{verify}", params)
        assert set(dropped(tmp_path / f"out-{verify}", paths)) == expected


def mutated(count, seed=0):
    """Texts of families whose members differ from each other by up to 80 words of 400."""
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        changes = generator.sample(range(400), generator.choice([0, 1, 5, 20, 40, 80]))
        texts.append(text(generator.randrange(count // 3), changes))
    return texts


def datasketch_clusters(signatures, bands):
    """Union-find over the matches of datasketch's index, as lists of positions."""
    index = MinHashLSH(num_perm=256, params=bands)
    parent = list(range(len(signatures)))

    def find_root(node):
        while parent[node] != node:
            node = parent[node]
        return node

    for number, values in enumerate(signatures):
        sketch = MinHash(256, seed=42, scheme="legacy", hashvalues=values.astype(np.uint64))
        for match in index.query(sketch):
            a, b = find_root(number), find_root(match)
            parent[max(a, b)] = min(a, b)
        index.insert(number, sketch)
    clusters = collections.defaultdict(list)
    for number in range(len(signatures)):
        clusters[find_root(number)].append(number)
    return sorted(members for members in clusters.values() if len(members) > 1)


def clusters_of(folder, paths):
    clusters = collections.defaultdict(set)
    for number, (_, kept, cluster) in dropped(folder, paths).items():
        clusters[cluster] |= {number, kept, cluster}
    return sorted(sorted(members) for members in clusters.values())


def test_clusters_equal_datasketchs_on_the_same_signatures(
    local_shuffle, write_documents, tmp_path
):
    texts = mutated(150)
    hashes = [minhash.shingle_hashes(minhash.shingles(item, NEAR)) for item in texts]
    expected = datasketch_clusters([minhash.signature(h, 256) for h in hashes], (25, 10))
    paths = write_documents(python(*texts), NEAR)
    find(paths, tmp_path / "out")
    assert clusters_of(tmp_path / "out", paths) == expected
    assert len(expected) > 20


def test_the_division_into_parts_and_partitions_changes_nothing(
    local_shuffle, write_documents, tmp_path, monkeypatch
):
    documents = python(*mutated(60))

    def positions(per_part, name):
        paths = write_documents(documents, NEAR, per_part, name)
        find(paths, tmp_path / f"{name}-out")
        result = set()
        for part in range(len(paths)):
            table = duplicates.read_duplicates(tmp_path / f"{name}-out", part)
            for row, kept in zip(table["row"].tolist(), table["kept"].tolist()):
                kept_part, kept_row = records.place_of(kept)
                result.add((part * per_part + row, kept_part * per_part + kept_row))
        return result

    expected = positions(60, "one")
    assert len(expected) == 18
    assert positions(7, "seven") == expected
    monkeypatch.setattr(duplicates, "ROWS_PER_PARTITION", 11)
    assert positions(13, "thirteen") == expected


def test_the_order_of_documents_changes_no_cluster(local_shuffle, write_documents, tmp_path):
    texts = mutated(60)
    order = list(range(60))
    random.Random(3).shuffle(order)
    paths = write_documents(python(*texts), NEAR, name="a")
    shuffled = write_documents(python(*(texts[i] for i in order)), NEAR, name="b")
    find(paths, tmp_path / "a-out")
    find(shuffled, tmp_path / "b-out")
    found = clusters_of(tmp_path / "b-out", shuffled)
    expected = clusters_of(tmp_path / "a-out", paths)
    assert sorted(sorted(order[i] for i in cluster) for cluster in found) == expected


def test_a_complete_result_is_kept_and_a_killed_one_continues(
    local_shuffle, write_documents, tmp_path, monkeypatch, corpus
):
    paths = write_documents(corpus, NEAR)
    summary = find(paths, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(duplicates.tables, "shuffle", None)
        assert find(paths, tmp_path / "whole") == summary
    # Killed after the edges and rounds, at the summary of the first partition.
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "write_json", _killed)
        with pytest.raises(KeyboardInterrupt):
            find(paths, tmp_path / "killed")
    assert find(paths, tmp_path / "killed") == summary
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def _killed(path, value):
    raise KeyboardInterrupt


def test_beam_gives_the_same_files(request, write_documents, tmp_path, corpus):
    params = NearDuplicates(True, verify_jaccard=True)
    paths = write_documents(corpus, params)
    find(paths, tmp_path / "beam", params)
    request.getfixturevalue("local_shuffle")
    find(paths, tmp_path / "loops", params)
    assert contents(tmp_path / "beam") == contents(tmp_path / "loops")
    assert len(contents(tmp_path / "beam")) > 2


def test_two_processes_give_the_same_edges(request, write_documents, tmp_path, corpus):
    paths = {number: str(path) for number, path in enumerate(write_documents(corpus, NEAR))}
    beam, loops = epath.Path(tmp_path / "beam"), epath.Path(tmp_path / "loops")
    options = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    runner = Runner(options=options)
    candidates.find_candidates(runner, paths, NEAR, True, beam, partitions=3)
    request.getfixturevalue("local_shuffle")
    candidates.find_candidates(Runner(), paths, NEAR, True, loops, partitions=3)
    assert contents(beam) == contents(loops)
    assert set(contents(beam)) == {"part-000001.parquet", "part-000002.parquet"}


def test_no_documents(write_documents, tmp_path):
    assert find([], tmp_path / "none")["clusters"] == 0
    paths = write_documents(python(text(1)), NEAR)
    summary = find(paths, tmp_path / "one")
    assert summary["sizes"] == summary["languages"] == {} and summary["rounds"] == 0
    assert len(duplicates.read_duplicates(tmp_path / "one", 0)["row"]) == 0
    assert list(contents(tmp_path / "one")) == ["summary.json"]
