"""Warnings for the person who runs a command. Imports no JAX."""

from rich.console import Console


def warn(text: str) -> None:
    """Prints a line on stderr, in yellow on a terminal."""
    Console(stderr=True, style="yellow", soft_wrap=True, highlight=False).print(text, markup=False)
