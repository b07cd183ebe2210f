"""From prompts to text: stop strings, streaming, and completion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from codellama_jax.generation.sampler import Sampling, generate
from codellama_jax.generation.stop import until
from codellama_jax.training.checkpoint import Run

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


class Stream:
    """Hands out a growing text piece by piece, and holds back what may still become a stop string.

    The text ends with the first update that holds a stop string: what more text would make of it is nobody's concern.
    """

    def __init__(self, write: Callable[[str], None], stop_strings: Sequence[str]):
        self.write, self.stop_strings, self.written = write, stop_strings, 0

    def update(self, text: str) -> None:
        shown = until(text, self.stop_strings)
        if shown == text:
            begun = [n for stop in self.stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])]
            shown = text[: len(text) - max(begun, default=0)]
        self.finish(shown)

    def finish(self, text: str) -> None:
        if text[self.written :]:
            self.write(text[self.written :])
            self.written = len(text)


def generate_text(
    run: Run,
    prompts: Sequence[Sequence[int]],
    decode: Decode,
    sampling: Sampling,
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
    stream: Callable[[str], None] | None,
    rows: Rows | None = None,
    first: Sequence[np.ndarray | None] | None = None,
) -> list[str]:
    """Generates from ids and returns texts, cut at stop strings. `stream` gets the pieces of the first prompt's text as they come.

    `rows` says instead of stop strings where each text ends; `first` which ids may begin each.

    A character that is unfinished where the tokens end is left out.
    """
    out = Stream(stream, stop_strings) if stream else None
    text_of = lambda row, ids: whole_characters(functools.partial(decode, row), ids)

    def show(row: int, ids: list[int]) -> None:
        if row == 0 and out:
            out.update(text_of(row, ids))

    cut = rows.cut if rows else lambda row, text: until(text, stop_strings)
    stopped = lambda row, ids: cut(row, text_of(row, ids)) != text_of(row, ids)
    new = generate(
        run.model,
        run.params,
        prompts,
        sampling,
        stop_ids,
        stop=stopped if rows or stop_strings else None,
        on_tokens=show if out else None,
        vocab=min(run.model.vocab_size, run.tokenizer.vocab_size),
        numbers=rows.numbers if rows else None,
        first=first,
    )
    texts = [cut(row, text_of(row, ids)) for row, ids in enumerate(new)]
    if out:
        out.finish(texts[0])
    return texts


def complete(
    run: Run,
    prompts: Sequence[str],
    sampling: Sampling,
    stop_strings: Sequence[str] = (),
    stream: Callable[[str], None] | None = None,
    rows: Rows | None = None,
) -> list[str]:
    """Returns what follows each prompt, up to EOS or a stop string. Prompts are taken as they are, trailing white space included."""
    encoded = [[run.tokenizer.bos_id, *run.tokenizer.encode(prompt)] for prompt in prompts]
    decode = continuation(run, prompts)
    return generate_text(run, encoded, decode, sampling, [run.tokenizer.eos_id], stop_strings, stream, rows)


def continuation(run: Run, prompts: Sequence[str]) -> Decode:
    """Returns the decoding of ids that go on from encoded prompts: after an empty one the first token carries the leading space."""
    return lambda row, ids: run.tokenizer.decode(ids, leading_space=not prompts[row])
