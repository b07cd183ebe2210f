"""From prompts to text: stop strings, streaming, and completion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from codellama_jax.generation.healing import heal
from codellama_jax.generation.sampler import Sampling, generate
from codellama_jax.generation.settings import check_stop_strings
from codellama_jax.generation.stop import until
from codellama_jax.models.trained import TrainedModel

Decode = Callable[[int, list[int]], str]  # (row, new ids) -> text
Cut = Callable[[int, str], str]  # (row, text) -> the text up to where it ends
BROKEN = "\ufffd"  # what each byte of an unfinished character decodes to


@dataclass(frozen=True)
class Rows:
    """What differs between the rows of a batch beside their prompts."""

    cut: Cut  # a row ends as soon as this cuts something off, and what is cut off once must stay so with more text
    numbers: Sequence[int]  # what each row's chance hangs on


def whole_characters(decode: Callable[[list[int]], str], ids: list[int]) -> str:
    """Decodes ids but for the last character, if its bytes are not all there yet. One that was written out as U+FFFD stays."""
    text, ids = decode(ids), list(ids)
    for _ in range(3):  # bytes that a character of UTF-8 may have without being finished
        if not text.endswith(BROKEN):
            break
        while len(shorter := decode(ids)) == len(text):  # ids that are no text decode to nothing
            ids.pop()
        if len(shorter) > len(text):
            break
        text = shorter
    return text


class Generated(NamedTuple):
    """A text, and whether the model or a stop string ended it rather than `max_new_tokens`."""

    text: str
    is_ended: bool


class Stream:
    """Writes a growing text piece by piece, and holds back what may still be taken from it.

    That is the beginning of a stop string, and what `shown` truncates; `shown` must be monotone:
    appending text never takes back what it returned. The text ends with the first update that
    holds a stop string; no later update changes it.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        stop_strings: Sequence[str],
        shown: Callable[[str], str] | None = None,
    ):
        self.write, self.stop_strings, self.shown, self.written = write, stop_strings, shown, 0

    def update(self, text: str) -> None:
        """Writes what is new of a text, except for what may be taken back."""
        kept = until(text, self.stop_strings)
        if kept == text:
            begun = 0
            for stop in self.stop_strings:
                for length in range(1, len(stop)):
                    if text.endswith(stop[:length]):
                        begun = max(begun, length)
            kept = text[: len(text) - begun]
        self.finish(self.shown(kept) if self.shown else kept)

    def finish(self, text: str) -> None:
        """Writes what is new of the final text."""
        if text[self.written :]:
            self.write(text[self.written :])
            self.written = len(text)


def generate_text(
    model: TrainedModel,
    prompts: Sequence[Sequence[int]],
    decode: Decode,
    sampling: Sampling,
    stop_ids: Sequence[int],
    stop_strings: Sequence[str] = (),
    stream: Stream | None = None,
    rows: Rows | None = None,
    first: Sequence[np.ndarray | None] | None = None,
) -> list[Generated]:
    """Generates from ids and returns texts, truncated at stop strings.

    A character that is unfinished where the tokens end is left out.

    Args:
      model: the model and its tokenizer.
      prompts: ids of any lengths.
      decode: turns the new ids of a row into its text.
      sampling: how tokens are drawn.
      stop_ids: each ends the row that draws it.
      stop_strings: each ends a text before it.
      stream: gets the first prompt's text as it grows; its caller finishes it.
      rows: replaces the stop strings by a truncation per row, and gives each row its PRNG number.
      first: the ids that may begin each row; None for any.
    """
    check_stop_strings(stop_strings)

    def text_of(row: int, ids: list[int]) -> str:
        return whole_characters(functools.partial(decode, row), ids)

    def show(row: int, ids: list[int]) -> None:
        if row == 0 and stream:
            stream.update(text_of(row, ids))

    def truncated(row: int, text: str) -> str:
        return rows.cut(row, text) if rows else until(text, stop_strings)

    def stopped(row: int, ids: list[int]) -> bool:
        text = text_of(row, ids)
        return truncated(row, text) != text

    new = generate(
        model.config,
        model.params,
        prompts,
        sampling,
        stop_ids,
        stop=stopped if rows or stop_strings else None,
        on_tokens=show if stream else None,
        vocab=min(model.config.vocab_size, model.tokenizer.vocab_size),
        numbers=rows.numbers if rows else None,
        first=first,
    )
    generated = []
    for row, ids in enumerate(new):
        text = text_of(row, ids)
        kept = truncated(row, text)
        is_ended = kept != text or len(ids) < sampling.max_new_tokens
        generated.append(Generated(kept, is_ended))
    return generated


def complete(
    model: TrainedModel,
    prompts: Sequence[str],
    sampling: Sampling,
    stop_strings: Sequence[str] = (),
    stream: Callable[[str], None] | None = None,
    rows: Rows | None = None,
    healing: bool = False,
) -> list[str]:
    """Returns what follows each prompt, up to EOS or a stop string.

    Prompts are taken as they are, trailing white space included.

    Args:
      model: the model and its tokenizer.
      prompts: texts.
      sampling: how tokens are drawn.
      stop_strings: each ends a text before it.
      stream: gets the pieces of the first prompt's text as they come.
      rows: replaces the stop strings by a truncation per row, and gives each row its PRNG number.
      healing: lets the first token end the one in which a prompt stops (see `healing.py`).
    """
    encoded = [[model.tokenizer.bos_id, *model.tokenizer.encode(prompt)] for prompt in prompts]
    decode, first = continuation(model, prompts), None
    if healing:
        encoded, decode, first = healed_prompts(model, encoded, prompts)
    out = Stream(stream, stop_strings) if stream else None
    eos = [model.tokenizer.eos_id]
    generated = generate_text(model, encoded, decode, sampling, eos, stop_strings, out, rows, first)
    if out:
        out.finish(generated[0].text)
    return [one.text for one in generated]


def continuation(model: TrainedModel, prompts: Sequence[str]) -> Decode:
    """Returns the decoding of ids that follow encoded prompts.

    After an empty prompt the first token carries the leading space.
    """

    def decode(row: int, ids: list[int]) -> str:
        return model.tokenizer.decode(ids, leading_space=not prompts[row])

    return decode


def healed_prompts(
    model: TrainedModel, encoded: Sequence[Sequence[int]], prompts: Sequence[str]
) -> tuple[list[list[int]], Decode, list[np.ndarray | None]]:
    """Backs prompts up by token healing. `prompts` are the texts at the ends of `encoded`.

    Returns the ids to continue from, the decoding of what follows the texts, and for each prompt
    the ids that may come first.
    """
    healed, plain = heal(model, encoded), continuation(model, prompts)

    def decode(row: int, ids: list[int]) -> str:
        return plain(row, ids)[len(healed[row].removed) :]

    return [one.ids for one in healed], decode, [one.first for one in healed]
