"""Counts of documents by reason, language and length: made per part, summed by the driver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

EXAMPLES = 3  # names that a sum keeps of a list


def add(totals: dict[str, Any], *names: str, amount: int = 1) -> None:
    """Adds to the count that nested dicts hold under `names`."""
    for name in names[:-1]:
        totals = totals.setdefault(name, {})
    totals[names[-1]] = totals.get(names[-1], 0) + amount


def add_example(totals: dict[str, Any], kind: str, name: str) -> None:
    """Keeps the first names of a kind."""
    examples = totals.setdefault("examples", {}).setdefault(kind, [])
    if len(examples) < EXAMPLES:
        examples.append(name)


def length_bin(characters: int) -> str:
    """Returns the smallest power of two that is at least a length; keys sort as texts."""
    # The bit length of n - 1 is the exponent of the smallest power of two that is at least n. The
    # zeros make the order of texts that of numbers.
    return f"{1 << max(characters - 1, 0).bit_length():010d}"


def total(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sum of nested dicts of counts; of lists the first EXAMPLES items."""
    totals: dict[str, Any] = {}
    for each in counts:
        _add_all(totals, each)
    return totals


def _add_all(totals: dict[str, Any], counts: dict[str, Any]) -> None:
    for name, value in counts.items():
        if isinstance(value, dict):
            _add_all(totals.setdefault(name, {}), value)
        elif isinstance(value, list):
            # Lists are examples for a reader: parts are summed in order, so the first ones are
            # kept.
            totals[name] = (totals.get(name, []) + value)[:EXAMPLES]
        else:
            totals[name] = totals.get(name, 0) + value
