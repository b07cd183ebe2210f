"""The text of one sequence: what is generated from, where it ends, and its growth while it streams.

The rules are those of `generation/text.py` and `generation/infill.py`, so that a request gets the
text that `complete` and `infill` print for the same seed and settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.stop import until
from codellama_jax.generation.text import Stream, whole_characters
from codellama_jax.serving.ends import CursorEnds


@dataclass(frozen=True, eq=False)
class Prompt:
    """The ids to continue.

    Attributes:
      ids: the prompt.
      decode: returns the text of new ids.
      unfinished: `Tokenizer.unfinished` of its tokenizer.
      stop_ids: each ends the sequence and is not returned.
      shown: truncates a text that the model did not end; None keeps all of it. Monotone.
      ends: where a middle ends before EOT; None for EOT alone.
      healed: the text at the end of the ids whose last token may be healed; None for no healing.
      is_stripped: whether white space at the start of the text is left out, as in answers of chats.
    """

    ids: list[int]
    decode: Callable[[list[int]], str]
    unfinished: Callable[[list[int]], int]
    stop_ids: tuple[int, ...]
    shown: Callable[[str], str] | None = None
    ends: CursorEnds | None = None
    healed: str | None = None
    is_stripped: bool = False


@dataclass(frozen=True)
class Settings:
    """How a sequence is generated.

    Attributes:
      sampling: how tokens are drawn, and at most how many.
      stop_strings: each ends the text before it.
      prompt_seconds: until the first token; None for any time.
      predict_seconds: from the first token to the last; None for any time.
      model: the number of the model that generates, in the server's list.
    """

    sampling: Sampling
    stop_strings: tuple[str, ...] = ()
    prompt_seconds: float | None = None
    predict_seconds: float | None = None
    model: int = 0


class Text:
    """The growing text of a sequence.

    Attributes:
      ids: the new ids.
      kept: the final text; "" until it has ended.
      is_ended: whether the model or a stop string ended it.
      stop_string: the stop string that ended it, or "".
    """

    def __init__(self, prompt: Prompt, settings: Settings) -> None:
        """Starts without ids."""
        self.prompt, self.settings = prompt, settings
        self.ids: list[int] = []
        self.kept, self.is_ended, self.stop_string = "", False, ""
        # The stream writes into this list, and `add` returns what has been written since.
        self._pieces: list[str] = []
        self._stream = Stream(self._pieces.append, settings.stop_strings, self._shown)

    def add(self, ids: list[int]) -> str:
        """Adds ids and returns the new piece of text, "" while it may still change."""
        self.ids += ids
        self._stream.update(text_of(self.prompt, self.ids))
        return self._taken()

    def extend(self, ids: list[int]) -> None:
        """Adds ids of a text that nobody reads before its end."""
        self.ids += ids

    def finish(self, is_complete: bool) -> str:
        """Ends the text and returns its last piece.

        `is_complete` is whether the sequence ran to its end, rather than to a time limit.
        """
        text = text_of(self.prompt, self.ids)
        # The order matters: a stop string that the client chose wins over the ends of a middle.
        kept = until(text, self.settings.stop_strings)
        if kept != text:
            starts = {stop: text.find(stop) for stop in self.settings.stop_strings if stop in text}
            self.stop_string = min(starts, key=starts.__getitem__)
        elif self.prompt.ends:
            kept = self.prompt.ends.final(text)
        # Fewer ids than allowed without a time limit: the model drew a stop id, or `stop` ended it.
        has_room = len(self.ids) < self.settings.sampling.max_new_tokens
        self.is_ended = kept != text or (is_complete and has_room)
        # The model did not end the text, so that its last lines may not belong to it
        # (`without_ramble`).
        if not self.is_ended and self.prompt.shown:
            kept = self.prompt.shown(kept)
        self.kept = kept
        self._stream.finish(kept)
        return self._taken()

    def _shown(self, text: str) -> str:
        if self.prompt.ends:
            text = self.prompt.ends.shown(text)
        return self.prompt.shown(text) if self.prompt.shown else text

    def _taken(self) -> str:
        piece = "".join(self._pieces)
        self._pieces.clear()
        return piece


def text_of(prompt: Prompt, ids: list[int]) -> str:
    """Returns the text of new ids without a last character that is unfinished."""
    text = whole_characters(prompt.decode, ids, prompt.unfinished)
    return text.lstrip() if prompt.is_stripped else text


def stop_of(prompt: Prompt, settings: Settings) -> Callable[[list[int]], bool] | None:
    """Returns whether the text of new ids suffices, or None where stop ids alone end it."""
    ends = prompt.ends
    # None saves decoding the text after every chunk.
    if not settings.stop_strings and not ends:
        return None

    def stop(ids: list[int]) -> bool:
        text = text_of(prompt, ids)
        kept = until(text, settings.stop_strings)
        # Both conditions are monotone, as the engine requires: more text never undoes an end.
        return kept != text or (ends is not None and ends.truncate(text) != text)

    return stop
