"""The contents of the data card of a prepared corpus, as JSON. report/data_card.py shows them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from etils import epath

from codellama_jax.checked import FieldError, from_dict
from codellama_jax.data.prepare.contamination_stage import RuleCount, TokenShare
from codellama_jax.errors import UserError
from codellama_jax.system.files import read_json, write_json

CLEAN, DIRTY = 0.2, 0.8  # shares of a task's tokens in the corpus, as Llama 2 names them


@dataclass(frozen=True)
class Amount:
    """Documents and the characters of their texts."""

    documents: int = 0
    characters: int = 0


@dataclass(frozen=True)
class Source:
    """An input of the corpus, as it was named, and the documents that were read from it."""

    path: str
    read: Amount


@dataclass(frozen=True)
class Language:
    """The documents of a language."""

    kept: Amount = field(default_factory=Amount)
    dropped: Amount = field(default_factory=Amount)


@dataclass(frozen=True)
class Redacted:
    """Personal data of a kind that was replaced."""

    documents: int
    places: int


@dataclass(frozen=True)
class Cluster:
    """Documents that are copies of each other: how many, and the ids of the first ones."""

    size: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Duplicates:
    """The clusters that a comparison of documents resulted in; one document of each is kept."""

    dropped: Amount
    sizes: dict[str, int] = field(default_factory=dict)  # size of a cluster -> clusters
    largest: tuple[Cluster, ...] = ()  # first


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

    written: Amount
    repositories: int
    shards: int
    bytes: int
    tokens: dict[str, int] = field(default_factory=dict)  # by tokenizer


@dataclass(frozen=True)
class CardData:
    """What a prepared corpus is made of and how, for a reader who has not seen it.

    Dictionaries keep their order on the card.
    """

    name: str
    command: str  # that prepares the same corpus
    policy: str  # name of the policy
    changes: dict[str, Any]  # fields of the policy that were changed, by dotted name
    versions: dict[str, str]  # of packages
    sources: tuple[Source, ...]
    reasons: dict[str, Amount]  # dropped documents by reason
    languages: dict[str, Language]
    lengths: dict[str, dict[str, int]]  # "kept" and "dropped": `length_bin` -> documents
    licenses: dict[str, Amount]  # of kept documents
    splits: dict[str, Split]
    seconds: dict[str, float]  # of each stage, summed over starts
    personal_data: dict[str, Redacted] = field(default_factory=dict)
    duplicates: dict[str, Duplicates] = field(default_factory=dict)  # "exact", "near"
    contamination: tuple[RuleCount, ...] = ()
    token_overlaps: tuple[TokenOverlap, ...] = ()


def length_bin(characters: int) -> str:
    """Returns the bin of a length: the largest power of two that is not above it, as text."""
    return str(1 << characters.bit_length() - 1 if characters else 0)


def token_overlaps(shares: list[TokenShare]) -> tuple[TokenOverlap, ...]:
    """Returns the overlap of each benchmark, from those of its tasks."""
    by_benchmark: dict[str, list[TokenShare]] = {}
    for share in shares:
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


def save_card(path: epath.PathLike, card: CardData) -> None:
    """Writes the contents of a card as JSON."""
    write_json(path, asdict(card))


def load_card(path: epath.PathLike) -> CardData:
    """Reads a file of `save_card`. Raises UserError that names a file of another form."""
    try:
        return from_dict(CardData, read_json(path))
    except FieldError as error:
        raise UserError(f"{path}: {error}; run prepare again, which writes it") from None
