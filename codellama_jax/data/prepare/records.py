"""The documents of a corpus while it is prepared, and the files that hold them between stages.

A stage reads and writes numbered parts. Part 12 of every stage holds the documents of input part
12, in the order of the input. A document is named inside the pipeline by its number, which sorts in
the order of the input and fits 64 bits.
"""

from __future__ import annotations

from typing import NamedTuple

ROW_BITS = 32  # of a document number: the row in its part
# Why documents are dropped: the name of the counter, and words that continue "27 documents".
REASONS = {
    # Readers
    "unreadable": "unreadable",
    "too_large": "too large",
    "not_utf8": "not in UTF-8",
    "binary": "binary",
    "empty": "empty",
    "damaged": "damaged",
    "no_text_column": "tables without a column of text",
    # Rules of a policy
    "language": "in another language",
    "file_name": "excluded by name",
    "stars": "with too few stars",
    "license": "under another license",
    "unknown_license": "without a known license",
    "generated": "generated",
    "too_small": "too small",
    "few_lines": "with too few lines",
    "long_line": "with a long line",
    "mean_line": "with long lines on average",
    "alphanumeric": "with too few letters and digits",
    "alphabetic": "with too few letters",
    "letters": "of data instead of words",
    "xml": "of XML",
    "html": "of HTML with little text",
    "data_size": "of JSON or YAML, too small or too large",
    "not_python3": "not valid Python 3",
    "few_comments": "with too few comments",
    "many_comments": "with too many comments",
    "fertility": "with too many tokens for their length",
    # Comparisons of documents
    "exact_duplicate": "equal to another document",
    "near_duplicate": "nearly equal to another document",
    "contaminated": "with text of a benchmark",
}


class Record(NamedTuple):
    """A document and what is known of it; "" and -1 stand for unknown."""

    id: str  # unique in the corpus, the same on every machine: SOURCE/PATH
    text: str
    path: str = ""  # in its repository or folder
    language: str = ""  # the name that GitHub's linguist gives it, such as "Python" or "C++"
    repository: str = ""  # OWNER/NAME; a record without one counts as a separate repository
    license: str = ""  # the SPDX identifier in lower case, such as "apache-2.0"
    stars: int = -1  # of the repository on GitHub
    source: str = ""  # the name of the input that the record comes from


class Dropped(NamedTuple):
    """A document that is not kept."""

    id: str
    reason: str  # a key of REASONS
    characters: int = 0  # of its text, as far as it was read
    language: str = ""


def document_number(part: int, row: int) -> int:
    """Returns the number of the document at `row` of a part."""
    # A part number in the upper and the row in the lower 32 bits: numbers sort by part, then row.
    return part << ROW_BITS | row


def place_of(number: int) -> tuple[int, int]:
    """Returns the (part, row) of a document number."""
    return number >> ROW_BITS, number & (1 << ROW_BITS) - 1
