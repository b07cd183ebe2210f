"""Consoles that print names and paths as they are. Imports no JAX."""

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """Returns a console that takes no part of a text or of a table's cell for markup or an emoji.

    rich would print the path `runs/[b]/:car:` without brackets and with a car. `options` are those
    of rich's Console.
    """
    return Console(markup=False, emoji=False, highlight=False, **options)


def warn(text: str) -> None:
    """Prints a line on stderr, in yellow on a terminal."""
    plain_console(stderr=True, style="yellow", soft_wrap=True).print(text)
