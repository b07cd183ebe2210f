"""Generated documents of the kind of key retrieval's prompts (Code Llama, section 3.3.2).

A document is code of the standard library with functions that return a two-digit number, and ends
with an assert statement about each of them. In a million tokens of ordinary code a toy model sees
no such dependency, and so never learns to find a key.

The numbers are pseudo-random and independent of everything else, so that they can only be copied.
Each is asserted once: a second assert would be copied from the first, which teaches no retrieval.

The corpora, by their name in a `CorpusConfig`:

    functions:short_keys  documents of little or no filler, from which retrieval is learned first
    functions:keys        documents of up to one sequence of the toy's code stage, 256 tokens
    functions:long_keys   documents of up to one sequence of its long-context stage, 1,024 tokens
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """The documents of a corpus."""

    count: int  # so many that a stage of the toy reads each about once, and learns none by heart
    longest: int  # characters of a document; the toy's tokens have two to three
    bare: float  # share of the documents without filler
    most_functions: int


CORPORA = {
    "functions:short_keys": Kind(24_000, 200, bare=1 / 3, most_functions=1),
    "functions:keys": Kind(24_000, 560, bare=1 / 3, most_functions=3),
    "functions:long_keys": Kind(2_000, 2_100, bare=0.0, most_functions=3),
}
# As in benchmarks/suites/key_retrieval.py, which a test compares.
NOTE = '    return "Note: this function is used at the end."\n'
NAME = "my_function"
# Other names, so that the number must be found by the function's name.
NAMES = (
    "first_value", "get_size", "limit", "offset", "my_number", "count_all", "default_port", "level",
)  # fmt: skip
ONE_FUNCTION = 0.8  # share of the documents with one function, as the prompts of the benchmark
LONGEST_LINE = 79  # of the filler


def documents(lines: Sequence[str], corpus: str) -> Iterator[str]:
    """Yields the documents of a corpus.

    Args:
      lines: of the filler, each with its newline.
      corpus: its name, which also seeds the numbers, names and lengths.
    """
    rng, kind = random.Random(corpus), CORPORA[corpus]
    for _ in range(kind.count):
        yield _document(rng, lines, kind)


def _document(rng: random.Random, lines: Sequence[str], kind: Kind) -> str:
    count = 1
    if kind.most_functions > 1 and rng.random() >= ONE_FUNCTION:
        count = rng.randint(2, kind.most_functions)
    names = [NAME] if count == 1 else rng.sample((NAME, *NAMES), count)
    values = {name: rng.randint(10, 99) for name in names}
    functions = [_function(rng, name, value) for name, value in values.items()]
    asserted = rng.sample(names, count)
    end = "".join(f"\nassert {name}() == {values[name]}\n" for name in asserted)
    most = kind.longest - sum(map(len, functions)) - len(end)
    # Uniform lengths put a function and its assert at every distance up to the longest.
    room = 0.0 if rng.random() < kind.bare else rng.uniform(0, most)
    start = rng.randrange(len(lines))
    filler: list[str] = []
    # Consecutive lines from a random start, as in the benchmark, where the filler is code too. The
    # lines are a ring, so that every start has enough of them.
    while room > len(lines[(start + len(filler)) % len(lines)]):
        filler.append(lines[(start + len(filler)) % len(lines)])
        room -= len(filler[-1])
    for function in functions:
        # At any position, as the benchmark varies the position of the key.
        filler.insert(rng.randint(0, len(filler)), function)
    return "".join(filler) + end


def _function(rng: random.Random, name: str, value: int) -> str:
    # The paper's note is a return statement before the real one.
    note = NOTE if rng.random() < 0.5 else ""
    return f"\ndef {name}() -> int:\n{note}    return {value}\n\n"
