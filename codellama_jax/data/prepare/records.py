"""The documents of a corpus while it is prepared, and the files that hold them between stages.

A stage reads and writes numbered parts. Part 12 of every stage holds the documents of input part
12, in the order of the input. A document is named inside the pipeline by its number, which sorts in
the order of the input and fits 64 bits.
"""

from __future__ import annotations

from typing import NamedTuple

ROW_BITS = 32  # of a document number: the row in its part


class Record(NamedTuple):
    """A document and what is known of it; "" and -1 stand for unknown."""

    id: str  # unique in the corpus, the same on every machine: SOURCE/PATH
    text: str
    path: str = ""  # in its repository or folder
    language: str = ""  # the name that GitHub's linguist gives it, such as "Python" or "C++"
    repository: str = ""  # OWNER/NAME; a record without one counts as a repository of its own
    license: str = ""  # the SPDX identifier in lower case, such as "apache-2.0"
    stars: int = -1  # of the repository on GitHub
    source: str = ""  # the name of the input that the record comes from


class Dropped(NamedTuple):
    """A document that is not kept."""

    id: str
    reason: str  # the name of the counter, such as "not_utf8" or "long_line"
    characters: int = 0  # of its text, as far as it was read
    language: str = ""


def document_number(part: int, row: int) -> int:
    """Returns the number of the document at `row` of a part."""
    return part << ROW_BITS | row


def place_of(number: int) -> tuple[int, int]:
    """Returns the (part, row) of a document number."""
    return number >> ROW_BITS, number & (1 << ROW_BITS) - 1
