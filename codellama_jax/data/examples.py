"""Finds sources whose documents hold no training example, before training waits for one forever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from codellama_jax.config import DataConfig
from codellama_jax.errors import UserError

# A source ends training when this many of its documents in succession hold no example: each one
# several times, but of a large source no more than are read in a few minutes.
EPOCHS, LEAST, MOST = 10, 100, 100_000


class CheckedEncoder:
    """An encoder of the documents of a source, as `pipeline.encoder` returns, that ends in time."""

    def __init__(
        self,
        encode: Callable,
        source: str,
        data: DataConfig,
        count: int,
        reasons: Counter[str] | None = None,
    ):
        """Wraps an encoder.

        Args:
          encode: a function of an index and a document.
          source: the name of the source in the mixture.
          data: how documents become examples.
          count: the number of documents of the source.
          reasons: why `encode` refused conversations so far, for the message.
        """
        self._reasons = Counter() if reasons is None else reasons
        self._encode, self._source, self._data = encode, source, data
        self._most = min(max(EPOCHS * count, LEAST), MOST)
        self._without = 0  # documents in succession that held no example

    def __call__(self, index: int, document: Any) -> Any:
        """Returns the encoded document. Raises UserError after too many without an example."""
        encoded = self._encode(index, document)
        parts = encoded["examples"] if "examples" in encoded else encoded["ids"]
        self._without = 0 if len(parts) else self._without + 1
        if self._without >= self._most:
            read = f"none of its documents that were read is {usable(self._data)}"
            fix = f"set mixture share {self._source} to 0, or give it other documents"
            # The most frequent reason is what the user has to change.
            for reason, number in self._reasons.most_common(1):
                read += f" ({number:,} times {reason})"
            raise UserError(f"the mixture reads from {self._source!r}, but {read}: {fix}")
        return encoded


def usable(data: DataConfig) -> str:
    """Returns the description of a document that holds an example, for messages."""
    fits = f"that fits {data.seq_len} tokens"
    if data.examples == "pairs":
        return f"a ranked pair that the chat format {data.chat} can write and {fits}"
    if data.examples == "completions":
        return f"a record with prompt and completion {fits}"
    if data.examples != "documents":
        return f"a Python file with a documented function {fits}"
    if data.chat:
        return f"a conversation that the chat format {data.chat} can write"
    return "other than empty"
