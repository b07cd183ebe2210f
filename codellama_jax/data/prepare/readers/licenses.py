"""Names the license of a repository by its license files, as an SPDX identifier in lower case."""

from __future__ import annotations

import re
from collections.abc import Iterable

FILE_NAME = re.compile(r"(un)?licen[sc]e|copying", re.IGNORECASE)  # how the names start
CONSIDERED = 20_000  # characters; the titles and grants are at the start

_IDENTIFIER = re.compile(r"spdx-license-identifier: ([\w.+-]+)")
# Titles: the first one in a text counts, because licenses mention each other further down.
_TITLES = {
    "agpl-3.0": r"gnu affero general public license,? (version 3|v3)",
    "lgpl-3.0": r"gnu lesser general public license,? (version 3|v3)",
    "lgpl-2.1": r"gnu lesser general public license,? (version 2\.1|v2\.1)",
    "lgpl-2.0": r"gnu library general public license,? version 2",
    "gpl-3.0": r"gnu general public license,? (version 3|v3)",
    "gpl-2.0": r"gnu general public license,? (version 2|v2)",
    "apache-2.0": r"apache license,? (version|v\.?) ?2\.0",
    "mpl-2.0": r"mozilla public license,? (version|v\.?) ?2\.0",
    "mpl-1.1": r"mozilla public license,? (version|v\.?) ?1\.1",
    "epl-2.0": r"eclipse public license -? ?(version|v\.?) ?2\.0",
    "epl-1.0": r"eclipse public license -? ?(version|v\.?) ?1\.0",
    "bsl-1.0": r"boost software license -? ?version 1\.0",
    "artistic-2.0": r"the artistic license 2\.0",
    "cc0-1.0": r"cc0 1\.0 universal",
    "cc-by-sa-4.0": r"attribution-sharealike 4\.0 international",
    "cc-by-4.0": r"attribution 4\.0 international",
    "unlicense": r"this is free and unencumbered software released into the public domain",
    "wtfpl": r"do what the fuck you want to public license",
    "psf-2.0": r"python software foundation license version 2",
    "mit": r"permission is hereby granted, free of charge, to any person obtaining a copy of this"
    r" software and associated documentation files",
    "zlib": r"altered source versions must be plainly marked as such",
    "isc": r"permission to use, copy, modify, and(/or)? distribute this software for any purpose"
    r" with or without fee is hereby granted",
    "bsd": r"redistribution and use in source and binary forms, with or without modification",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _TITLES.items()}


def license_of(text: str) -> str:
    """Returns the license that a text grants, "" if it is unknown."""
    # Line breaks and indentation differ between copies of one license.
    words = " ".join(text[:CONSIDERED].lower().split())
    if match := _IDENTIFIER.search(words):
        return match[1]
    matches = []
    for name, pattern in _PATTERNS.items():
        if match := pattern.search(words):
            matches.append((match.start(), name))
    if not matches:
        return ""
    # The earliest match: see _TITLES.
    name = min(matches)[1]
    if name == "bsd":
        return _bsd(words)
    # 0BSD is the ISC license without the condition to keep the notice.
    if name == "isc" and "provided that the above copyright notice" not in words:
        return "0bsd"
    return name


def combined(names: Iterable[str]) -> str:
    """Returns the licenses of several files of a repository, joined by " and ".

    The GNU lesser license adds to the text of the general one, which is a second file.
    """
    distinct = {name for name in names if name}
    if "lgpl-3.0" in distinct:
        distinct.discard("gpl-3.0")
    return " and ".join(sorted(distinct))


def _bsd(words: str) -> str:
    # The variants differ by clauses: the fourth is about advertising, the third about endorsement.
    if "all advertising materials" in words:
        return "bsd-4-clause"
    if "endorse or promote" in words:
        return "bsd-3-clause"
    return "bsd-2-clause"
