"""Truncates a text at the first stop string. Imports no JAX, for commands that use no model."""

from __future__ import annotations

from collections.abc import Sequence


def until(text: str, stop_strings: Sequence[str]) -> str:
    """Truncates a text before the first stop string."""
    # The earliest occurrence of any of them counts, not the first stop string of the list.
    ends = [text.find(stop) for stop in stop_strings if stop in text]
    return text[: min(ends)] if ends else text
