"""The rules by which `prepare` keeps, redacts and drops documents, and the published sets of them.

A `Policy` names every rule and its bounds; with its defaults every step is off. `POLICIES` holds
the rules of the papers by name. A comment beside each of them gives the source, and names which
bounds are our choice because none is published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from codellama_jax.checked import Checked, FieldError, Range
from codellama_jax.data.prepare.contamination.index import Decontamination
from codellama_jax.data.prepare.duplicates.minhash import NearDuplicates

Count = Annotated[int, Range(0, 2**40)]
Share = Annotated[float, Range(0, 1)]
Fertility = Annotated[float, Range(0, 1000)]  # characters per token
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
class ExtensionRules(Checked):
    """Bounds for the files of one extension; None keeps the bound of the policy."""

    max_line: Count | None = None
    max_mean_line: Count | None = None
    min_alphanumeric: Share | None = None
    min_alphabetic: Share | None = None


@dataclass(frozen=True)
class Policy(Checked):
    """Names the rules that a document must meet, and the steps that compare documents.

    A bound of 0 is off. Documents without any visible character are dropped under every policy. The
    rules are checked in the order in which they are listed.
    """

    # Files
    languages: tuple[str, ...] = ()  # Languages to keep, by linguist's names; none keeps all.
    excluded_names: tuple[str, ...] = ()  # File names to drop: shell patterns, as "*_pb2.py".
    min_stars: Count = 0  # Least stars of the repository; documents of unknown stars are kept.
    licenses: tuple[str, ...] = ()  # Licenses to keep, SPDX in lower case; none keeps all.
    unknown_license: bool = True  # Whether to keep documents without a known license.

    # Sizes and lines
    marker_lines: Count = 0  # Markers as "do not edit" drop a document in its first N lines.
    min_bytes: Count = 0  # Least size of a document in UTF-8.
    max_bytes: Count = 0  # Largest size of a document in UTF-8.
    min_lines: Count = 0  # Least number of lines.
    max_line: Count = 0  # Most characters of the longest line.
    max_mean_line: Count = 0  # Most characters of a line on average.

    # Characters
    min_alphanumeric: Share = 0.0  # Least share of letters and digits among all characters.
    min_alphabetic: Share = 0.0  # Least share of letters among all characters.
    min_letters: Share = 0.0  # Least share of letters among the bytes that are not white space.

    # Formats
    drop_xml: bool = False  # Drops documents with an XML declaration in the first 100 characters.
    min_html_share: Share = 0.0  # HTML must have a larger share of visible text.
    min_html_characters: Count = 0  # HTML must have more characters of visible text.
    min_data_characters: Count = 0  # Least characters of JSON and YAML.
    max_data_characters: Count = 0  # Most characters of JSON and YAML.

    # Contents
    python3: bool = False  # Python must parse with the Python 3 that runs this command.
    min_comments: Share = 0.0  # Least share of the characters in comments and docstrings.
    # Largest share of the characters in comments and docstrings.
    max_comments: Annotated[float, Range(0, 1, open_least=True)] = 1.0
    # Least characters per token by language, counted with the first --tokenizer.
    min_fertility: dict[str, Fertility] = field(default_factory=dict)
    # By extension in lower case, such as ".html": bounds that replace those above.
    extensions: dict[str, ExtensionRules] = field(default_factory=dict)

    # Personal data to redact.
    pii: tuple[PiiKind, ...] = ()

    exact_duplicates: bool = False  # Drops all but one of the documents with the same text.
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


def _for_extensions(extensions: str, rules: ExtensionRules) -> dict[str, ExtensionRules]:
    return {f".{extension}": rules for extension in extensions.split()}


CODEGEEX_LANGUAGES = (
    *("C", "C#", "C++", "CSS", "Cuda", "Fortran", "Go", "HTML", "Java", "JavaScript", "Kotlin"),
    *("Lean", "Objective-C", "Objective-C++", "PHP", "Pascal", "Python", "R", "Rust", "SQL"),
    *("Scala", "Shell", "TeX", "TypeScript"),
)

# BigCode's table of extensions, preprocessing/visual_inspection.csv: the extensions that it leaves
# out, and those whose bounds differ from the others'. Extensions of a handful of files are omitted.
_EXCLUDED_EXTENSIONS = (
    "al aux bison cats cdf cl2 csx dpr f77 frg frx geo grt ltx nbp pck ph pls plx rest rktd rktl"
    " sexp sig tab toc vhf vht vrx w wlt xrl yy"
)
_STARCODER_EXTENSIONS = {
    # Prose and markup, where a paragraph is one line.
    **_for_extensions(
        "bib bsv cmake do ado dtx ins markdown md mkd mkdn nb r rmd rst sql sty tex",
        ExtensionRules(max_line=0, max_mean_line=0),
    ),
    **_for_extensions(
        "ads aug bas fp mpl prc scm sld sps sv vhd wl y", ExtensionRules(min_alphabetic=0.25)
    ),
    **_for_extensions("matlab", ExtensionRules(max_line=0, max_mean_line=0, min_alphabetic=0.25)),
    **_for_extensions("json", ExtensionRules(max_line=0, max_mean_line=0, min_alphabetic=0.5)),
    **_for_extensions("yaml yml", ExtensionRules(min_alphabetic=0.5)),
    **_for_extensions("fsh", ExtensionRules(max_line=500)),
}

# The Code Llama paper calls its code near-deduplicated and gives no bounds, so that all of them are
# our choice: those on lines are Codex's, the others keep the embedded corpus of this project as it
# is. Neither removal of PII nor decontamination is described.
_CODE_LLAMA = Policy(
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
        verify_jaccard=True,
    ),
)

# The Codex paper, section 3.1: unique Python files under 1 MB, without those that are likely
# generated, that have a mean line over 100 or a line over 1,000 characters, or a low share of
# alphanumeric characters. Our choice: 10 lines for the markers, and BigCode's share of 0.25.
_CODEX = Policy(
    languages=("Python",),
    marker_lines=10,
    max_bytes=MEGABYTE - 1,
    max_line=1000,
    max_mean_line=100,
    min_alphanumeric=0.25,
    exact_duplicates=True,
)

# The CodeGeeX paper and repository: files of 1 KB to 100 KB from repositories with a star, without
# generated ones, without a mean line over 100 characters or fewer than 40 % letters. It applies
# them to the Python, Java and C++ that it scraped; we apply them to all its languages. Our choice:
# 1 KB is 1,000 bytes, 10 lines for the markers. No removal of duplicates is described.
_CODEGEEX = Policy(
    languages=CODEGEEX_LANGUAGES,
    min_stars=1,
    marker_lines=10,
    min_bytes=1000,
    max_bytes=100_000,
    max_mean_line=100,
    min_alphabetic=0.4,
)

# The StarCoder paper, section 3, with the scripts and the table of extensions in BigCode's
# repository. JSON and YAML have 50 to 5,000 characters in the paper, 100 to 5,000 in the script: we
# take the paper's. SantaCoder's optional rules (more than 5 stars, comments between 0.01 and 0.8,
# characters per token) are off, as in StarCoder. StarCoder replaced PII that a model found; the
# model is not available here, so that SantaCoder's detectors replace it. Our choice: languages
# and extensions that the table lacks are kept, with the bounds of most extensions.
_STARCODER = Policy(
    excluded_names=tuple(f"*.{extension}" for extension in _EXCLUDED_EXTENSIONS.split()),
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
    extensions=_STARCODER_EXTENSIONS,
    pii=("email", "ip_address", "key"),
    exact_duplicates=True,
    near_duplicates=NearDuplicates(enabled=True),
    decontamination=Decontamination(substring=True),
)

# The PanGu-Coder paper as a survey reports it: Python files under 1 MB, without exact duplicates by
# MD5, that parse as Python 3, with mean lines below 100 and lines below 1,000 characters.
_PANGU_CODER = Policy(
    languages=("Python",),
    max_bytes=MEGABYTE - 1,
    max_line=999,
    max_mean_line=99,
    python3=True,
    exact_duplicates=True,
)

POLICIES: dict[str, Policy] = {
    "none": Policy(),
    "code_llama": _CODE_LLAMA,
    "codex": _CODEX,
    "codegeex": _CODEGEEX,
    "starcoder": _STARCODER,
    "pangu_coder": _PANGU_CODER,
}
