"""Generated documents of the kind of key retrieval's prompts (Code Llama, section 3.3.2).

A document is code of the standard library with functions that return a two-digit number, and ends
with assert statements about them. In a million tokens of ordinary code a toy model sees no such
dependency, and so never learns to find a key.

The numbers are pseudo-random and independent of everything else, so that they can only be copied.

The corpora, by their name in a `CorpusConfig`:

    functions:keys       documents of up to one sequence of the toy's code stage, 256 tokens
    functions:long_keys  documents of up to one sequence of its long-context stage, 1,024 tokens
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

# As in benchmarks/suites/key_retrieval.py, which a test compares.
NOTE = '    return "Note: this function is used at the end."\n'
NAME = "my_function"
# Other names, so that the number must be found by the function's name.
NAMES = (
    "first_value", "get_size", "limit", "offset", "my_number", "count_all", "default_port", "level",
)  # fmt: skip
MOST_FUNCTIONS, MOST_ASSERTS = 4, 5  # of a document
# So many that a stage of the toy reads each about once: it would learn the numbers by heart.
DOCUMENTS = {"functions:keys": 24_000, "functions:long_keys": 2_000}
# Characters of a document; the toy's tokens have two to four.
LONGEST = {"functions:keys": 480, "functions:long_keys": 2_000}
LONGEST_LINE = 79  # of the filler


def documents(lines: Sequence[str], corpus: str) -> Iterator[str]:
    """Yields the documents of a corpus.

    Args:
      lines: of the filler, each with its newline.
      corpus: its name, which also seeds the numbers, names and lengths.
    """
    rng, longest = random.Random(corpus), LONGEST[corpus]
    for _ in range(DOCUMENTS[corpus]):
        yield _document(rng, lines, rng.randint(longest // 4, longest))


def _document(rng: random.Random, lines: Sequence[str], length: int) -> str:
    """Returns a document of at most about `length` characters."""
    # Half have one function, as the prompts of the benchmark. The others teach to find its name.
    count = rng.choice((1, rng.randint(2, MOST_FUNCTIONS)))
    names = [NAME] if count == 1 else rng.sample((NAME, *NAMES), count)
    values = {name: rng.randint(10, 99) for name in names}
    functions = [_function(rng, name, value) for name, value in values.items()]
    # A number that is repeated is first copied from the assert before, which is learned sooner.
    asserted = rng.choices(names, k=rng.randint(1, MOST_ASSERTS))
    end = "".join(f"\nassert {name}() == {values[name]}\n" for name in asserted)
    room = length - sum(map(len, functions)) - len(end)
    start = rng.randrange(len(lines))
    filler: list[str] = []
    while room > len(lines[(start + len(filler)) % len(lines)]):
        filler.append(lines[(start + len(filler)) % len(lines)])
        room -= len(filler[-1])
    for function in functions:
        filler.insert(rng.randint(0, len(filler)), function)
    return "".join(filler) + end


def _function(rng: random.Random, name: str, value: int) -> str:
    # The paper's note is a return statement before the real one.
    note = NOTE if rng.random() < 0.5 else ""
    return f"\ndef {name}() -> int:\n{note}    return {value}\n\n"
