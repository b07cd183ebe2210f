"""Warnings for the person who runs a command. Imports no JAX."""

from rich.console import Console


def warn(text: str) -> None:
    """Prints a line on stderr, in yellow on a terminal."""
    console = Console(stderr=True, style="yellow", soft_wrap=True, highlight=False, emoji=False)
    console.print(text, markup=False)
