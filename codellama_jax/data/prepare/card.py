"""The contents of the data card of a prepared corpus. report/data_card.py shows them."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codellama_jax.config import leaves, to_dict
from codellama_jax.data.prepare.contamination.part_files import RuleCount, TokenShare
from codellama_jax.data.prepare.counts import total
from codellama_jax.data.prepare.policies import POLICIES

CLEAN, DIRTY = 0.2, 0.8  # shares of a task's tokens in the corpus, as Llama 2 names them
PACKAGES = ("codellama_jax", "apache-beam", "pyarrow", "datasketch", "detect-secrets", "pygments")


@dataclass(frozen=True)
class Language:
    """Documents and characters of a language at the steps of the preparation."""

    dropped: int = 0  # documents, by the filters
    filtered: int = 0  # documents that passed the filters
    filtered_characters: int = 0
    kept: int = 0  # documents that are in the dataset
    kept_characters: int = 0


@dataclass(frozen=True)
class Cluster:
    """Documents that are copies of each other: how many, which is kept, and the first ids."""

    size: int
    kept: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class TokenOverlap:
    """The tokens of a benchmark that are in the corpus, in matches as Llama 2 counts them."""

    benchmark: str
    tasks: int
    clean: int  # tasks with less than CLEAN of their tokens in the corpus
    dirty: int  # tasks with at least DIRTY
    tokens: int
    contaminated: int


@dataclass(frozen=True)
class Split:
    """A split of the written dataset."""

    documents: int
    characters: int
    shards: int
    tokens: dict[str, int]  # by the tokenizer's fingerprint


@dataclass(frozen=True)
class CardData:
    """What a prepared corpus is made of and how, for a reader who has not seen it."""

    command: str  # that prepares the same corpus
    policy: str  # name of the published policy that differs in the fewest fields
    changes: dict[str, Any]  # fields that differ from it, by dotted name
    versions: dict[str, str]  # of packages
    fingerprint: str  # of the dataset
    read: int  # documents
    read_characters: int
    dropped: dict[str, int]  # documents by reason
    examples: dict[str, Sequence[str]]  # ids of dropped documents by reason
    cleaned: int  # documents of which passages were removed
    languages: dict[str, Language]
    # "after the filters" and "in the dataset": documents by the upper bound of their length.
    lengths: dict[str, dict[int, int]]
    licenses: dict[str, int]  # documents in the dataset
    redacted: dict[str, int]  # passages by the kind of personal data
    cluster_sizes: dict[int, int]  # clusters of copies by their number of documents
    largest_clusters: tuple[Cluster, ...]
    contamination: tuple[RuleCount, ...]
    token_overlaps: tuple[TokenOverlap, ...]
    splits: dict[str, Split]
    bytes: int  # of the dataset's files
    seconds: dict[str, float]  # of each stage, in the last start of the command


def card_of(manifest: Mapping[str, Any], seconds: Mapping[str, float], command: str) -> CardData:
    """Returns the contents of the card from the manifest of a corpus.

    Args:
        manifest: the contents of manifest.json.
        seconds: of each stage.
        command: that prepared the corpus.
    """
    counts = manifest["counts"]
    documents, dataset = counts["documents"], counts["dataset"]
    # Stages that the policy leaves out have no counts.
    copies, marks = counts.get("duplicates", {}), counts.get("contamination", {})
    policy, changes = _named_policy(manifest["policy"])
    dropped = [stage.get("dropped", {}) for stage in (documents, dataset)]
    examples = [stage.get("examples", {}) for stage in (documents, dataset)]
    lengths = {"after the filters": documents, "in the dataset": dataset}
    return CardData(
        command=command,
        policy=policy,
        changes=changes,
        versions=_versions(),
        fingerprint=manifest["fingerprint"],
        read=documents["read"]["documents"],
        read_characters=documents["read"]["characters"],
        dropped=total(dropped),
        examples=total(examples),
        cleaned=dataset.get("cleaned", {}).get("contaminated", 0),
        languages=_languages(documents, dataset),
        lengths={name: _by_number(stage.get("lengths", {})) for name, stage in lengths.items()},
        licenses=dataset.get("licenses", {}),
        redacted=documents.get("redacted", {}),
        cluster_sizes=_by_number(copies.get("sizes", {})),
        largest_clusters=tuple(Cluster(**cluster) for cluster in copies.get("largest", ())),
        contamination=tuple(RuleCount(**count) for count in marks.get("rules", ())),
        token_overlaps=token_overlaps([TokenShare(**share) for share in marks.get("tokens", ())]),
        splits=_splits(manifest),
        bytes=sum(size for size, _ in manifest["files"].values()),
        seconds=dict(seconds),
    )


def token_overlaps(shares: Sequence[TokenShare]) -> tuple[TokenOverlap, ...]:
    """Returns the overlap of each benchmark, from those of its tasks."""
    by_benchmark: dict[str, list[TokenShare]] = {}
    for share in shares:
        # A task whose texts hold no tokens has no share.
        if share.tokens:
            by_benchmark.setdefault(share.benchmark, []).append(share)
    overlaps = []
    for benchmark, tasks in by_benchmark.items():
        parts = [task.contaminated / task.tokens for task in tasks]
        overlaps.append(
            TokenOverlap(
                benchmark,
                tasks=len(tasks),
                clean=sum(part < CLEAN for part in parts),
                dirty=sum(part >= DIRTY for part in parts),
                tokens=sum(task.tokens for task in tasks),
                contaminated=sum(task.contaminated for task in tasks),
            )
        )
    return tuple(overlaps)


def _named_policy(policy: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the nearest published policy, and the fields that differ from it."""
    fields = leaves(policy)
    nearest: tuple[str, dict[str, Any]] = ("", fields)
    for name, published in POLICIES.items():
        named = leaves(to_dict(published))
        missing = dict.fromkeys(named.keys() - fields.keys())
        given = {field: value for field, value in fields.items() if named.get(field) != value}
        # Fields that only one of the two has count as differences, like those with other values. On
        # a tie the first policy wins.
        if not nearest[0] or len(given | missing) < len(nearest[1]):
            nearest = name, given | missing
    return nearest[0], dict(sorted(nearest[1].items()))


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # this project, not installed
            continue
    return versions


def _languages(documents: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Language]:
    languages = {}
    written = dataset.get("languages", {})
    for name, count in documents.get("languages", {}).items():
        # A language may have documents after the filters, but none after the removal of duplicates.
        kept = written.get(name, {})
        languages[name] = Language(
            dropped=count.get("dropped", 0),
            filtered=count.get("documents", 0),
            filtered_characters=count.get("characters", 0),
            kept=kept.get("documents", 0),
            kept_characters=kept.get("characters", 0),
        )
    return languages


def _by_number(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(name): count for name, count in counts.items()}


def _splits(manifest: Mapping[str, Any]) -> dict[str, Split]:
    splits = {}
    for name, split in manifest["splits"].items():
        # A split without documents has counted no tokens.
        tokens = {key: counts.get(name, 0) for key, counts in manifest["tokens"].items()}
        splits[name] = Split(tokens=tokens, **split)
    return splits
