"""Progress on the terminal: for work that takes longer than a person waits in silence.

Lines go to stderr, bars too; a bar is drawn on a terminal only. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.filesize import decimal

if TYPE_CHECKING:
    from rich.progress import Progress

AFTER = 1.0  # seconds of silence before a line
SECONDS = 30.0  # between two lines where stderr is no terminal

Say = Callable[[str], None]
Unit = Literal["items", "bytes"]


def silent(text: str) -> None:
    """Prints nothing."""


def note(text: str) -> None:
    """Prints one line on stderr at once."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def announced(say: Say, text: str, after: float = AFTER) -> Iterator[None]:
    """Prints `text` once the block has taken longer than `after` seconds."""
    timer = threading.Timer(after, say, [text])
    timer.daemon = True  # it does not keep a process alive that ends within the block
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def counted(
    name: str, total: int, done: int = 0, unit: Unit = "items", quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Shows how many of `total` are done: a bar on a terminal, elsewhere a line now and then.

    Yields a function that adds to them.

    Args:
      name: the name of the items, as "documents".
      total: the number at the end.
      done: the number at the start.
      unit: whether items are counted, or bytes, which are shown with their rate.
      quiet: shows nothing, as on all hosts but the first.
    """
    console = Console(stderr=True)
    if console.is_terminal or quiet:
        with _bar(console, unit, quiet) as progress:
            bar = progress.add_task(name, total=total, completed=min(done, total))
            yield lambda count: progress.advance(bar, count)
        return
    # A log file gets lines: a bar would be drawn over itself thousands of times.
    amount = decimal if unit == "bytes" else str
    count, shown = done, time.monotonic()
    note(f"{name}: {amount(count)} of {amount(total)}")

    def add(new: int) -> None:
        nonlocal count, shown
        count += new
        if count >= total or time.monotonic() - shown > SECONDS:
            shown = time.monotonic()
            note(f"{name}: {amount(count)} of {amount(total)}")

    yield add


def _bar(console: Console, unit: Unit, quiet: bool) -> Progress:
    from rich import progress  # slow to import, and not needed without a terminal

    numbers: list[progress.ProgressColumn] = [progress.MofNCompleteColumn()]
    if unit == "bytes":
        numbers = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    columns = (*progress.Progress.get_default_columns(), *numbers)
    return progress.Progress(*columns, console=console, disable=quiet)
