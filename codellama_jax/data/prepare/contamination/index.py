"""Finds benchmarks in the documents of a corpus, by published rules.

- `substring` (BigCode): a document that holds a text of a benchmark, in any case, is dropped.
- `ngrams` (GPT-3): 13-grams of words in lower case and without punctuation are removed with the
  200 characters on each side. Remaining pieces under 200 characters are dropped, and so are
  documents that split into more than 10 pieces. 13-grams in more than 10 documents are ignored.
- `similarity` (BigCode's alternative): a document is dropped if its words and those of a task, or
  of its solution, have a Jaccard index of at least 0.58. BigCode finds candidates by MinHash, adds
  the tests to the texts of a task, and compares no solution alone; here the index is exact.
- `tokens` (Llama 2): reports the tokens of each task that are in a match of more than 10 tokens,
  and removes nothing. Llama 2's matches may also skip up to 4 tokens, which is not done here.

stage.py applies them to the part files of a corpus.

Code differs from prose. Without punctuation `a + b` and `a-b` are the same two words, and 13 words
are two to four lines. So the n-grams find copies with another indentation, other brackets or other
operators. A copy whose names are changed is found by `similarity` only, if it is the only content
of its document and keeps its docstring or most other words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from codellama_jax.checked import Checked, Range
from codellama_jax.data.prepare.contamination.grams import Grams, WordSets
from codellama_jax.data.prepare.contamination.matching import ANCHOR, Needles

Count = Annotated[int, Range(0, 10**9)]


class BenchmarkText(NamedTuple):
    """A text of a benchmark that should not be trained on."""

    benchmark: str
    task: str
    kind: str  # "prompt", "docstring" (a part of a prompt) or "solution"
    text: str


@dataclass(frozen=True)
class Decontamination(Checked):
    """Rules that find the benchmarks in the corpus, with the published numbers."""

    substring: bool = False  # BigCode: drops documents that hold a text of a benchmark.
    similarity: bool = False  # BigCode's alternative: drops documents of similar words.
    ngrams: bool = False  # GPT-3: removes runs of words that a text of a benchmark has.
    tokens: bool = False  # Llama 2: reports runs of tokens, and removes nothing.
    # Least characters, without white space, of a text that `substring` finds. BigCode excepts
    # `return x + y`, `return n**2`, `return len(string)` and `return ''.join(strings)`.
    min_substring: Annotated[int, Range(ANCHOR, 10**9)] = 23
    min_similarity: Annotated[float, Range(0, 1, open_least=True)] = 0.58  # Least Jaccard index.
    ngram: Annotated[int, Range(2, 1000)] = 13  # Words of an n-gram.
    margin: Count = 200  # Characters on each side of an n-gram that are removed too.
    min_piece: Count = 200  # Least characters of a piece that is kept.
    max_pieces: Count = 10  # Most pieces into which a kept document may split.
    max_documents: Count = 10  # N-grams in more documents are common, and ignored.
    token_match: Annotated[int, Range(1, 1000)] = 10  # A match has more tokens than this.

    @property
    def enabled(self) -> bool:
        """Whether any rule is on."""
        return self.substring or self.similarity or self.ngrams or self.tokens


class Span(NamedTuple):
    """A match of a text of a benchmark, from character `start` to before `end` of a document."""

    start: int
    end: int
    rule: str  # "substring", "similarity", "ngrams" or "tokens"
    benchmark: str
    task: str
    kind: str  # of the text
    text: int  # its number in the index
    first: int = 0  # of its tokens that match; of the rule "tokens" only
    last: int = 0  # one after the last one


class Index:
    """Finds the texts of benchmarks in documents.

    Each n-gram of words counts for the first text that holds it. The rules on n-grams leave out
    docstrings, which are part of prompts.
    """

    def __init__(self, texts: Sequence[BenchmarkText], params: Decontamination):
        self.texts, self.params = list(texts), params
        # Of all texts, so that numbers of texts are the same under every rule.
        contents = ["" if text.kind == "docstring" else text.text for text in texts]
        needles = [needle(text.text, params) for text in texts] if params.substring else []
        self._needle_texts = [number for number, data in enumerate(needles) if data]
        self._needles = Needles([needles[number] for number in self._needle_texts])
        # Each list is empty where its rule is off: then its index holds nothing and costs nothing.
        self._set_texts, word_sets = _word_sets(texts, params)
        self._word_sets = WordSets(word_sets)
        self.words = Grams(contents if params.ngrams else [], params.ngram, False, True)
        # A match has more than `token_match` tokens, so that a gram has one more.
        size = params.token_match + 1
        self.tokens = Grams(contents if params.tokens else [], size, True, False)

    @classmethod
    def build(cls, texts: Iterable[BenchmarkText], params: Decontamination) -> Index:
        """Returns the index of texts in sorted order, so that it does not depend on theirs."""
        # Where two texts hold one n-gram, the match counts for the first: a fixed order makes the
        # report the same for every order of the benchmarks.
        return cls(sorted(set(texts)), params)

    def span(self, start: int, end: int, rule: str, number: int, *tokens: int) -> Span:
        """Returns the span of a match with the text of this number."""
        text = self.texts[number]
        return Span(start, end, rule, text.benchmark, text.task, text.kind, number, *tokens)

    def substrings(self, lowered: bytes) -> list[Span]:
        """Returns the first match of each text, in bytes, sorted by position."""
        spans = []
        for number, start, end in self._needles.find(lowered):
            spans.append(self.span(start, end, "substring", self._needle_texts[number]))
        return sorted(spans)

    def similar(self, data: bytes) -> list[Span]:
        """Returns a span over the document, in bytes, for each task whose words are similar."""
        spans: dict[tuple[str, str], Span] = {}
        for number in self._word_sets.similar(data, self.params.min_similarity):
            span = self.span(0, len(data), "similarity", self._set_texts[number])
            spans.setdefault((span.benchmark, span.task), span)
        return list(spans.values())

    def word_grams(self, data: bytes, common: np.ndarray | None = None) -> list[Span]:
        """Returns runs of n-grams of one task, in bytes.

        `common` [keys] bool marks the n-grams that are ignored.
        """
        units = self.words.units(data)
        positions, keys = self.words.matches(units)
        if common is not None:
            positions, keys = positions[~common[keys]], keys[~common[keys]]
        spans: list[Span] = []
        # Positions ascend, so that overlapping n-grams of one task join into one span per passage.
        for position, key in zip(positions.tolist(), keys.tolist()):
            start, last = units.starts[position], position + self.params.ngram - 1
            span = self.span(int(start), int(units.ends[last]), "ngrams", self.words.owner(key))
            previous = spans[-1] if spans else None
            is_next = previous and span.start <= previous.end and span[2:5] == previous[2:5]
            if previous and is_next:
                spans[-1] = previous._replace(end=span.end)
            else:
                spans.append(span)
        return spans

    def token_grams(self, data: bytes, seen: np.ndarray | None = None) -> list[Span]:
        """Returns runs of tokens of the texts, each with the bytes of its first occurrence.

        `seen` [keys] bool marks grams that are not reported again; this call marks those of `data`.
        """
        units = self.tokens.units(data)
        positions, keys = self.tokens.matches(units)
        # One occurrence of each n-gram shows which tokens of the benchmarks the document covers,
        # however often the document repeats it.
        keys, occurrences = np.unique(keys, return_index=True)
        if seen is not None:
            is_new = ~seen[keys]
            seen[keys] = True
            keys, occurrences = keys[is_new], occurrences[is_new]
        size = self.params.token_match + 1
        places = []
        for key, position in zip(keys.tolist(), positions[occurrences].tolist()):
            start, end = int(units.starts[position]), int(units.ends[position + size - 1])
            # A gram counts for every place in the benchmarks, unlike the n-grams of words: the
            # report is the share of each task's tokens that the corpus holds.
            for text, token in self.tokens.places(key):
                places.append((text, token, start, end))
        spans: list[Span] = []
        # In the order of the benchmark's tokens, not of the document: runs are joined there.
        for text, token, start, end in sorted(places):
            previous = spans[-1] if spans else None
            if previous and previous.text == text and token < previous.last:
                spans[-1] = previous._replace(last=token + size)
            else:
                spans.append(self.span(start, end, "tokens", text, token, token + size))
        return spans


def _word_sets(
    texts: Sequence[BenchmarkText], params: Decontamination
) -> tuple[list[int], list[str]]:
    """Returns the texts that documents are compared with, and the number of a text of each.

    They are all texts of a task together, and its solution alone.
    """
    numbers: list[int] = []
    contents: list[str] = []
    places: dict[tuple[str, str], int] = {}
    for number, text in enumerate(texts if params.similarity else []):
        if text.kind == "solution" and needle(text.text, params):
            numbers.append(number)
            contents.append(text.text)
        task = text.benchmark, text.task
        if task not in places:
            places[task] = len(numbers)
            numbers.append(number)
            contents.append("")
        contents[places[task]] += f"\n{text.text}"
    return numbers, contents


def needle(text: str, params: Decontamination) -> bytes:
    """Returns the text that `substring` finds, b"" for one that is too short to be telling."""
    stripped = text.strip()
    is_short = len("".join(stripped.split())) < params.min_substring
    return b"" if is_short else stripped.encode().lower()


def find(
    text: str,
    index: Index,
    common: np.ndarray | None = None,
    seen: np.ndarray | None = None,
) -> list[Span]:
    """Returns all matches in a document, by rule and position.

    Args:
        text: the document.
        index: the texts of the benchmarks, and the rules.
        common: [keys] bool, the n-grams of words that are ignored.
        seen: [keys] bool, the n-grams of tokens that are not reported again; the call marks those
            of the document.
    """
    data = text.encode()
    spans: list[Span] = []
    if index.params.substring:
        spans += index.substrings(data.lower())
    if index.params.similarity:
        spans += index.similar(data)
    if index.params.ngrams:
        spans += index.word_grams(data, common)
    if index.params.tokens:
        spans += index.token_grams(data, seen)
    if len(data) == len(text):
        return spans
    # Positions of bytes become those of characters.
    converted = []
    for span in spans:
        start = len(data[: span.start].decode())
        length = len(data[span.start : span.end].decode())
        converted.append(span._replace(start=start, end=start + length))
    return converted
