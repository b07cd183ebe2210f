"""The contents of a data card, from the manifest of a corpus."""

import dataclasses

from codellama_jax.config import to_dict
from codellama_jax.data.prepare.card import (
    Cluster,
    Language,
    Split,
    TokenOverlap,
    card_of,
    token_overlaps,
)
from codellama_jax.data.prepare.contamination.part_files import RuleCount, TokenShare
from codellama_jax.data.prepare.policies import POLICIES, Policy

DOCUMENTS = {
    "read": {"documents": 10, "characters": 1000},
    "dropped": {"long_line": 3},
    "examples": {"long_line": ["a.py"]},
    "languages": {
        "C": {"documents": 5, "characters": 500},
        "Python": {"dropped": 3, "documents": 2, "characters": 100},
    },
    "lengths": {"0000000064": 4, "0000000128": 3},
    "redacted": {"email": 6},
}
DATASET = {
    "kept": {"train": 5},
    "dropped": {"near_duplicate": 1, "contaminated": 1},
    "examples": {"near_duplicate": ["b.c"], "contaminated": ["c.c"]},
    "cleaned": {"contaminated": 2},
    "languages": {"C": {"documents": 4, "characters": 400}},
    "licenses": {"mit": 4},
    "lengths": {"0000000064": 4},
}
DUPLICATES = {
    "clusters": 1,
    "exact": 0,
    "near": 1,
    "sizes": {"2": 1},
    "languages": {"C": {"exact": 0, "near": 1}},
    "largest": [{"size": 2, "kept": "a.c", "members": ["a.c", "b.c"]}],
}
RULE = RuleCount("mbpp", "ngrams", "remove", 1, 2, 1)
MARKS = {
    "rules": [RULE._asdict()],
    "tokens": [TokenShare("mbpp", "11", 10, 1)._asdict()],
}


def manifest(counts, policy=POLICIES["codex"], **changes):
    return {
        "fingerprint": "ab12",
        "policy": to_dict(policy),
        "splits": {"train": {"documents": 4, "characters": 400, "shards": 1}},
        "tokens": {"t1": {"train": 99}},
        "files": {"train-0": [70, "sha"], "features.json": [7, "sha"]},
        "counts": counts,
    } | changes


def test_the_card_has_the_counts_of_all_stages():
    stages = {"documents": DOCUMENTS, "dataset": DATASET}
    stages |= {"duplicates": DUPLICATES, "contamination": MARKS}
    card = card_of(manifest(stages), {"documents": 1.5}, "prepare x")
    assert card.dropped == {"long_line": 3, "near_duplicate": 1, "contaminated": 1}
    assert card.examples == {
        "long_line": ["a.py"],
        "near_duplicate": ["b.c"],
        "contaminated": ["c.c"],
    }
    assert (card.read, card.read_characters, card.cleaned, card.bytes) == (10, 1000, 2, 77)
    assert card.languages == {"C": Language(0, 5, 500, 4, 400), "Python": Language(3, 2, 100, 0, 0)}
    assert card.lengths == {"after the filters": {64: 4, 128: 3}, "in the dataset": {64: 4}}
    assert card.cluster_sizes == {2: 1}
    assert card.largest_clusters[0] == Cluster(2, "a.c", ["a.c", "b.c"])
    assert card.contamination == (RULE,)
    assert card.token_overlaps == (TokenOverlap("mbpp", 1, 1, 0, 10, 1),)
    assert card.splits == {"train": Split(4, 400, 1, {"t1": 99})}
    assert card.versions["apache-beam"]


def test_stages_that_did_not_run_are_empty():
    documents = {"read": {"documents": 1, "characters": 5}}
    card = card_of(manifest({"documents": documents, "dataset": {}}, tokens={}), {}, "prepare x")
    assert card.dropped == card.cluster_sizes == card.redacted == {}
    assert card.largest_clusters == card.contamination == card.token_overlaps == ()
    assert card.splits == {"train": Split(4, 400, 1, {})}


def test_changed_fields_of_the_policy_are_named():
    counts = {"documents": {"read": {"documents": 1, "characters": 5}}, "dataset": {}}
    for name, policy in POLICIES.items():
        card = card_of(manifest(counts, policy), {}, "")
        assert (card.policy, card.changes) == (name, {})
    near = dataclasses.replace(POLICIES["starcoder"].near_duplicates, threshold=0.85)
    policy = dataclasses.replace(POLICIES["starcoder"], near_duplicates=near, max_line=7)
    card = card_of(manifest(counts, policy), {}, "")
    assert (card.policy, card.changes) == (
        "starcoder",
        {"max_line": 7, "near_duplicates.threshold": 0.85},
    )
    assert card_of(manifest(counts, Policy(min_lines=3)), {}, "").policy == "none"


def test_tasks_are_clean_dirty_or_between():
    shares = [
        TokenShare("a", "clean", 100, 19),
        TokenShare("a", "between", 100, 20),
        TokenShare("a", "dirty", 100, 80),
        TokenShare("a", "without tokens", 0, 0),
        TokenShare("b", "dirty", 10, 10),
    ]
    assert token_overlaps(shares) == (
        TokenOverlap("a", tasks=3, clean=1, dirty=1, tokens=300, contaminated=119),
        TokenOverlap("b", tasks=1, clean=0, dirty=1, tokens=10, contaminated=10),
    )
