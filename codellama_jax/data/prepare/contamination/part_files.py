"""The stage of `prepare` that finds benchmarks: maps over the part files of the documents.

The driver writes the index once, maps `count_grams` over the parts, calls `common_grams`, and maps
`scan_part`. The first map is needed only for the rule `ngrams`, which ignores n-grams that many
documents hold.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from etils import epath

from codellama_jax.checked import from_dict
from codellama_jax.data.prepare.contamination.index import (
    BenchmarkText,
    Decontamination,
    Index,
    Span,
    find,
)
from codellama_jax.data.prepare.parts import read_rows, write_rows
from codellama_jax.data.prepare.readers import conversations
from codellama_jax.system.files import read_json, write_json

# A row per match. A document that has any row with the action "drop" is not kept.
CONTAMINATION = pa.schema(
    [
        ("row", pa.int64()),  # of the document in its part
        ("action", pa.string()),  # "drop", "remove" or "report"
        # The other columns are the fields of Span.
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("rule", pa.string()),
        ("benchmark", pa.string()),
        ("task", pa.string()),
        ("kind", pa.string()),
        ("text", pa.int32()),
        ("first", pa.int32()),
        ("last", pa.int32()),
    ]
)
GRAMS = pa.schema([("gram", pa.uint64()), ("documents", pa.int64())])


def write_index(
    path: epath.PathLike, texts: Iterable[BenchmarkText], params: Decontamination
) -> None:
    """Writes the texts and rules from which every worker builds the index."""
    write_json(path, {"params": asdict(params), "texts": sorted(set(texts))})


def load_index(path: epath.PathLike) -> Index:
    """Returns the index of a file of `write_index`, built once per process."""
    state = epath.Path(path).stat()
    return _load_index(str(path), state.mtime, state.length)


@functools.lru_cache(maxsize=1)
def _load_index(path: str, mtime: float, length: int) -> Index:
    """Loads an index; `mtime` and `length` differ from those of an earlier file of its name."""
    stored = read_json(path)
    texts = [BenchmarkText(*fields) for fields in stored["texts"]]
    return Index.build(texts, from_dict(Decontamination, stored["params"]))


def count_grams(
    documents: epath.PathLike, index: epath.PathLike, out: epath.PathLike, dropped: str = ""
) -> None:
    """Writes how many documents of a part hold each n-gram of words of the benchmarks.

    Args:
        documents: the part of the documents.
        index: the file of `write_index`.
        out: the part file to write, with the columns of GRAMS.
        dropped: a Parquet file whose column `row` lists documents to skip, such as duplicates;
            "" skips none. Copies of a file would make its n-grams common.
    """
    words = load_index(index).words
    counts = np.zeros(len(words.keys), np.int64)
    for _, document in _documents(documents, dropped):
        _, keys = words.matches(words.units(document["text"].encode()))
        # `+=` with an index array adds 1 per distinct key: a document counts once, however often it
        # holds the n-gram.
        counts[np.unique(keys)] += 1
    rows = []
    for key in np.flatnonzero(counts):
        rows.append({"gram": int(words.keys[key]), "documents": int(counts[key])})
    write_rows(out, GRAMS, rows)


def common_grams(
    counts: Iterable[epath.PathLike], params: Decontamination, out: epath.PathLike
) -> None:
    """Sums the files of `count_grams` and writes the n-grams in more than `max_documents`."""
    totals: Counter[int] = Counter()
    for path in counts:
        for row in read_rows(path):
            totals[row["gram"]] += row["documents"]
    rows = []
    for gram, documents in sorted(totals.items()):
        if documents > params.max_documents:
            rows.append({"gram": gram, "documents": documents})
    write_rows(out, GRAMS, rows)


def scan_part(
    documents: epath.PathLike,
    index: epath.PathLike,
    common: str,
    out: epath.PathLike,
    dropped: str = "",
) -> None:
    """Writes the matches in the documents of a part.

    The rule `tokens` reports each n-gram once per part, in the first document that holds it. So
    its rows are bounded by the tokens of the benchmarks.

    Args:
        documents: the part of the documents.
        index: the file of `write_index`.
        common: the file of `common_grams`, or "" to ignore no n-gram.
        out: the part file to write, with the columns of CONTAMINATION.
        dropped: as for `count_grams`.
    """
    loaded = load_index(index)
    is_common = np.zeros(len(loaded.words.keys), bool)
    if common:
        grams = np.array([row["gram"] for row in read_rows(common)], np.uint64)
        is_common[np.isin(loaded.words.keys, grams)] = True
    write_rows(out, CONTAMINATION, _rows(documents, dropped, loaded, is_common))


def _rows(
    documents: epath.PathLike, dropped: str, index: Index, common: np.ndarray
) -> Iterator[dict[str, Any]]:
    # Not shared between parts, whose workers do not know each other: see `scan_part`.
    seen = np.zeros(len(index.tokens.keys), bool)
    for row, document in _documents(documents, dropped):
        spans = find(document["text"], index, common, seen)
        # One decision for the document: if any rule drops it, all its rows report "drop" but those
        # of the rule `tokens`, which only reports.
        action = _action(document, spans, index.params)
        for span in spans:
            used = "report" if span.rule == "tokens" else action
            yield {"row": row, "action": used, **span._asdict()}


def _documents(documents: epath.PathLike, dropped: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the row, and text and language, of each document that is not dropped.

    The text of a conversation is that of its messages: no line of a benchmark is in its JSON, where
    line breaks and quotes are escaped.
    """
    skipped = {row["row"] for row in read_rows(dropped, ["row"])} if dropped else set()
    for row, document in enumerate(read_rows(documents, ["text", "language"])):
        if row in skipped:
            continue
        if document["language"] == conversations.LANGUAGE:
            document["text"] = conversations.plain_text(document["text"])
        yield row, document


def _action(document: dict[str, Any], spans: Sequence[Span], params: Decontamination) -> str:
    """Returns "drop" for a document that is not kept, else "remove"."""
    if any(span.rule in ("substring", "similarity") for span in spans):
        return "drop"
    matches = [(span.start, span.end) for span in spans if span.rule == "ngrams"]
    # Pieces of the JSON of a conversation are no conversations: they would be trained on as text.
    if matches and document["language"] == conversations.LANGUAGE:
        return "drop"
    return "remove" if pieces(len(document["text"]), matches, params) else "drop"


def pieces(
    length: int, matches: Iterable[tuple[int, int]], params: Decontamination
) -> list[tuple[int, int]]:
    """Returns the parts (start, end) that remain of a document of `length` characters.

    None remains if it splits into more than `max_pieces`, which counts pieces that are too short.
    """
    remaining, begin = [], 0
    # GPT-3 (Brown et al. 2020, appendix C): the match and `margin` characters on both sides go.
    # `begin` is the end of all that was removed so far; matches may overlap.
    for start, end in sorted(matches):
        if start - params.margin > begin:
            remaining.append((begin, start - params.margin))
        begin = max(begin, end + params.margin)
    if begin < length:
        remaining.append((begin, length))
    # A document without matches is one piece, which is kept at any length.
    if not begin:
        return remaining
    if len(remaining) > params.max_pieces:
        return []
    return [(start, end) for start, end in remaining if end - start >= params.min_piece]


def clean_text(text: str, rows: Iterable[Mapping[str, Any]], params: Decontamination) -> list[str]:
    """Returns the pieces that remain of a document: [text] without matches, [] if it is dropped.

    Args:
        text: the document.
        rows: its rows of CONTAMINATION.
        params: those that the rows were made with.
    """
    matches = []
    for row in rows:
        if row["action"] == "drop":
            return []
        if row["action"] == "remove":
            matches.append((row["start"], row["end"]))
    return [text[start:end] for start, end in pieces(len(text), matches, params)]


class RuleCount(NamedTuple):
    """The matches of a benchmark by one rule in all parts."""

    benchmark: str
    rule: str
    action: str
    documents: int
    matches: int
    tasks: int


def rule_counts(paths: Iterable[epath.PathLike]) -> list[RuleCount]:
    """Returns the counts by benchmark, rule and action of the files of `scan_part`, sorted."""
    documents: dict[tuple, set] = {}
    tasks: dict[tuple, set] = {}
    matches: Counter[tuple] = Counter()
    for part, path in enumerate(paths):
        for row in read_rows(path, ["row", "action", "rule", "benchmark", "task"]):
            key = row["benchmark"], row["rule"], row["action"]
            documents.setdefault(key, set()).add((part, row["row"]))
            tasks.setdefault(key, set()).add(row["task"])
            matches[key] += 1
    counts = []
    for key in sorted(matches):
        sizes = len(documents[key]), matches[key], len(tasks[key])
        counts.append(RuleCount(*key, *sizes))
    return counts


class TokenShare(NamedTuple):
    """How many tokens of a task are in the corpus, in matches of more than `token_match`."""

    benchmark: str
    task: str
    tokens: int
    contaminated: int


def token_shares(paths: Iterable[epath.PathLike], index: Index) -> list[TokenShare]:
    """Returns the share of every task, from the files of `scan_part`, sorted."""
    covered = [np.zeros(length, bool) for length in index.tokens.lengths]
    for path in paths:
        for row in read_rows(path, ["rule", "text", "first", "last"]):
            if row["rule"] == "tokens":
                # Marked, not added: two documents that hold the same tokens count once.
                covered[row["text"]][row["first"] : row["last"]] = True
    totals: Counter[tuple[str, str]] = Counter()
    contaminated: Counter[tuple[str, str]] = Counter()
    for text, tokens in zip(index.texts, covered):
        totals[text.benchmark, text.task] += len(tokens)
        contaminated[text.benchmark, text.task] += int(tokens.sum())
    return [TokenShare(*key, totals[key], contaminated[key]) for key in sorted(totals)]
