"""Lines on the terminal for work that takes longer than a person waits in silence."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

AFTER = 1.0  # seconds of silence before a line

Say = Callable[[str], None]


def silent(text: str) -> None:
    """Prints nothing."""


@contextlib.contextmanager
def announced(say: Say, text: str, after: float = AFTER) -> Iterator[None]:
    """Prints `text` once the block has taken longer than `after` seconds."""
    timer = threading.Timer(after, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
