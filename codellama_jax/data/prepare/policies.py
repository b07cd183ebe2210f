"""The rules by which `prepare` keeps, redacts and drops documents, and the published sets of them.

A `Policy` names every rule and its bounds; with its defaults every step is off. `POLICIES` holds
the rules of the papers by name. A comment beside each of them gives the source, and tells which
bounds are our choice because none is published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from codellama_jax.checked import Checked, FieldError, Range

Count = Annotated[int, Range(0, 2**40)]
Share = Annotated[float, Range(0, 1)]
PiiKind = Literal["email", "ip_address", "key"]

MEGABYTE = 1_000_000
# Permissive licenses: those whose only condition is attribution. SPDX identifiers in lower case.
PERMISSIVE = (
    "0bsd",
    "apache-2.0",
    "artistic-2.0",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "bsl-1.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc0-1.0",
    "isc",
    "mit",
    "mit-0",
    "ncsa",
    "postgresql",
    "psf-2.0",
    "python-2.0",
    "unlicense",
    "upl-1.0",
    "wtfpl",
    "zlib",
)


@dataclass(frozen=True)
class NearDuplicates(Checked):
    """Removal of near-duplicates by MinHash; the defaults are BigCode's, and the step is off."""

    enabled: bool = False
    permutations: Annotated[int, Range(1, 2**14)] = 256  # of the MinHash signature
    ngram: Annotated[int, Range(1, 1000)] = 5  # units per shingle
    unit: Literal["words", "lines"] = "words"
    threshold: Annotated[float, Range(0, 1, open_least=True)] = 0.7  # Jaccard index
    bands: Count = 25  # 0 chooses bands and rows that minimise false positives and negatives
    rows: Count = 10  # of a band
    scope: Literal["global", "language"] = "global"  # compare all documents, or one language's
    verify_jaccard: bool = False  # compute the Jaccard index of candidates from their shingles

    def check_relations(self) -> None:
        if bool(self.bands) != bool(self.rows):
            zero = "bands" if self.rows else "rows"
            raise FieldError((zero,), " is 0: set both bands and rows, or neither")
        if self.bands * self.rows > self.permutations:
            used = f"{self.bands} x {self.rows} rows"
            limit = f"the signature has {self.permutations} permutations"
            raise FieldError(("bands",), f" is {self.bands}: {used} are too many, {limit}")


@dataclass(frozen=True)
class Decontamination(Checked):
    """Rules that find the benchmarks in the corpus."""

    substring: bool = False  # drops documents that hold a solution or prompt: BigCode
    ngram13: bool = False  # removes 13-grams of words and their surroundings: GPT-3
    token_report: bool = False  # reports matches of more than 10 tokens, removes nothing: Llama 2


@dataclass(frozen=True)
class ExtensionRules(Checked):
    """Bounds for the files of one extension; None keeps the bound of the policy."""

    max_line: Count | None = None
    max_mean_line: Count | None = None
    min_alphanumeric: Share | None = None
    min_alphabetic: Share | None = None


@dataclass(frozen=True)
class Policy(Checked):
    """Names the rules that a document must meet, and the steps that compare documents.

    A bound of 0 is off. Documents without any visible character are dropped under every policy. A
    rule about stars or languages applies only where these are known.
    """

    # Files
    languages: tuple[str, ...] = ()  # to keep, by linguist's names; () keeps all
    excluded_names: tuple[str, ...] = ()  # shell patterns of file names, such as "*_pb2.py"
    min_stars: Count = 0  # of the repository
    licenses: tuple[str, ...] = ()  # to keep, by SPDX identifiers in lower case; () keeps all
    unknown_license: bool = True  # keep documents without a known license

    # Sizes
    min_bytes: Count = 0  # of the document in UTF-8
    max_bytes: Count = 0
    min_lines: Count = 0
    max_line: Count = 0  # characters of the longest line
    max_mean_line: Count = 0  # characters of the mean line

    # Characters
    min_alphanumeric: Share = 0.0  # share of letters and digits among all characters
    min_alphabetic: Share = 0.0  # share of letters among all characters
    min_letters: Share = 0.0  # share of letters among the bytes of all visible characters

    # Generated files and formats
    marker_lines: Count = 0  # first lines in which markers such as "do not edit" count
    drop_xml: bool = False  # documents with an XML declaration in their first 100 characters
    min_html_share: Share = 0.0  # share of visible text among all characters of HTML
    min_html_characters: Count = 0  # of visible text in HTML
    min_data_characters: Count = 0  # of JSON and YAML
    max_data_characters: Count = 0

    # Contents
    python3: bool = False  # Python must parse as the running version of Python 3
    min_comments: Share = 0.0  # share of the characters that are in comments and docstrings
    max_comments: Annotated[float, Range(0, 1, open_least=True)] = 1.0
    # Characters per token by language; used only when a tokenizer is given.
    min_fertility: dict[str, float] = field(default_factory=dict)
    # By extension in lower case, such as ".html": bounds that replace those above.
    extensions: dict[str, ExtensionRules] = field(default_factory=dict)

    # Personal data to redact
    pii: tuple[PiiKind, ...] = ()

    # Comparisons of documents
    exact_duplicates: bool = False
    near_duplicates: NearDuplicates = field(default_factory=NearDuplicates)
    decontamination: Decontamination = field(default_factory=Decontamination)

    def check_relations(self) -> None:
        for least, most in (
            ("min_bytes", "max_bytes"),
            ("min_data_characters", "max_data_characters"),
            ("min_comments", "max_comments"),
        ):
            low, high = getattr(self, least), getattr(self, most)
            if high and low > high:
                raise FieldError((least,), f" is {low:,}: it must be at most {most}, {high:,}")
        for extension in self.extensions:
            if not extension.startswith(".") or extension != extension.lower():
                fix = 'it must be in lower case and start with a dot, such as ".html"'
                raise FieldError(("extensions",), f" has the key {extension!r}: {fix}")


POLICIES: dict[str, Policy] = {
    "none": Policy(),
    "code_llama": Policy(
        marker_lines=10,
        max_line=1000,
        max_mean_line=100,
        min_letters=0.4,
        exact_duplicates=True,
        near_duplicates=NearDuplicates(
            enabled=True,
            permutations=128,
            ngram=1,
            unit="lines",
            threshold=0.85,
            bands=0,
            rows=0,
        ),
    ),
    "codex": Policy(
        languages=("Python",),
        max_bytes=MEGABYTE - 1,
        max_line=1000,
        max_mean_line=100,
        min_alphanumeric=0.25,
        marker_lines=10,
        exact_duplicates=True,
    ),
    "codegeex": Policy(
        min_stars=1,
        min_bytes=1000,
        max_bytes=100_000,
        max_mean_line=100,
        min_alphabetic=0.4,
        marker_lines=10,
    ),
    "starcoder": Policy(
        licenses=PERMISSIVE,
        unknown_license=False,
        max_line=1000,
        max_mean_line=100,
        min_alphanumeric=0.25,
        drop_xml=True,
        min_html_share=0.2,
        min_html_characters=100,
        min_data_characters=50,
        max_data_characters=5000,
        pii=("email", "ip_address", "key"),
        exact_duplicates=True,
        near_duplicates=NearDuplicates(enabled=True),
        decontamination=Decontamination(substring=True),
    ),
    "pangu_coder": Policy(
        languages=("Python",),
        max_bytes=MEGABYTE - 1,
        max_line=999,
        max_mean_line=99,
        python3=True,
        exact_duplicates=True,
    ),
}
