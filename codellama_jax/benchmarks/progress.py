"""Progress on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

SECONDS = 30.0  # between two lines where stderr is no terminal


def note(text: str) -> None:
    """Prints one line on stderr at once."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def counted(
    name: str, total: int, done: int = 0, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Shows how many of `total` are done. Yields a function that adds to them.

    Args:
        name: what is counted.
        total: the number at the end.
        done: the number at the start.
        quiet: shows nothing, as on all hosts but the first.
    """
    console = Console(stderr=True)
    if console.is_terminal or quiet:
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=console, disable=quiet) as progress:
            bar = progress.add_task(name, total=total, completed=min(done, total))
            yield lambda count: progress.advance(bar, count)
        return
    count, shown = done, time.monotonic()
    note(f"{name}: {count} of {total}")

    def add(new: int) -> None:
        nonlocal count, shown
        count += new
        if count >= total or time.monotonic() - shown > SECONDS:
            shown = time.monotonic()
            note(f"{name}: {count} of {total}")

    yield add
