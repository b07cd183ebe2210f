"""From prompts to text: stop strings, streaming, and completion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from codellama_jax.generation.beam import beam_search
from codellama_jax.generation.healing import heal
from codellama_jax.generation.sampler import generate_each
from codellama_jax.generation.settings import Sampling, check_stop_strings
from codellama_jax.generation.stop import until
from codellama_jax.models.trained import TrainedModel

Item = TypeVar("Item")

# Both get the index of a prompt first.
Decode = Callable[[int, list[int]], str]  # returns the text of new ids
Truncate = Callable[[int, str], str]  # returns a text up to where it ends
BROKEN = "\ufffd"  # what the bytes of an unfinished character decode to


@dataclass(frozen=True)
class Rows:
    """Truncations and PRNG numbers of the sequences of a batch.

    Attributes:
      truncate: a sequence stops once `truncate(index, text) != text`. It must be monotone:
        appending text never moves the end.
      numbers: each sequence's PRNG key depends on the seed and its number.
      ranks: of the texts of a beam search, the one to take for each sequence, from 0. Sequences
        with equal prompts share one search, so their `truncate` must be the same.
    """

    truncate: Truncate
    numbers: Sequence[int]
    ranks: Sequence[int] | None = None


def whole_characters(
    decode: Callable[[list[int]], str], ids: list[int], unfinished: Callable[[list[int]], int]
) -> str:
    """Decodes ids, except for a last character some of whose bytes are still missing.

    A U+FFFD that the model wrote itself stays. `unfinished` is that of the tokenizer.
    """
    # A byte-level token may end in the middle of a UTF-8 character. Its bytes decode to U+FFFD
    # until the rest arrives, and a stream that printed them could not take them back.
    text = decode(ids)
    return text[: len(text) - unfinished(ids)] if text.endswith(BROKEN) else text


class Generated(NamedTuple):
    """A text, and whether the model or a stop string ended it rather than `max_new_tokens`."""

    text: str
    is_ended: bool


class Stream:
    """Writes a growing text piece by piece, and holds back its end while that may still change.

    Held back are the beginning of a stop string and the text that `shown` truncates; `shown` must
    be monotone: appending text never takes back a text that it returned. The text ends with the
    first update that holds a stop string; no later update changes it.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        stop_strings: Sequence[str],
        shown: Callable[[str], str] | None = None,
    ):
        """Starts with an empty text.

        Args:
          write: gets each new piece.
          stop_strings: each ends the text before it.
          shown: truncates the text further; None shows all of it.
        """
        self.write, self.stop_strings, self.shown, self.written = write, stop_strings, shown, 0

    def update(self, text: str) -> None:
        """Writes the new part of a text, except for an end that may still change."""
        kept = until(text, self.stop_strings)
        if kept == text:
            # No stop string is complete yet, but the text may end with the beginning of one, which
            # the next token completes. The longest such ending is held back.
            begun = 0
            for stop in self.stop_strings:
                for length in range(begun + 1, min(len(stop), len(text) + 1)):
                    if text.endswith(stop[:length]):
                        begun = length
            kept = text[: len(text) - begun]
        self.finish(self.shown(kept) if self.shown else kept)

    def finish(self, text: str) -> None:
        """Writes the new part of the final text."""
        # `written` counts characters. It never decreases, because `shown` is monotone.
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
) -> list[Generated]:
    """Returns the text after each prompt, truncated at stop strings.

    Args: as in `generate_text_each`.
    """
    arguments = (model, prompts, decode, sampling, stop_ids, stop_strings, stream)
    return in_order(generate_text_each(*arguments))


def generate_text_each(
    model: TrainedModel,
    prompts: Sequence[Sequence[int]],
    decode: Decode,
    sampling: Sampling,
    stop_ids: Sequence[int],
    stop_strings: Sequence[str] = (),
    stream: Stream | None = None,
    rows: Rows | None = None,
    first: Sequence[np.ndarray | None] | None = None,
    slots: int = 0,
) -> Iterator[tuple[int, Generated]]:
    """Yields the index of each prompt and its text, truncated at stop strings, as soon as it ends.

    A character that is unfinished where the tokens end is left out. A beam search returns its best
    text, or that of the rank in `rows`, and streams nothing.

    Args:
      model: the model and its tokenizer.
      prompts: ids of any lengths.
      decode: returns the text of the new ids of a prompt.
      sampling: how tokens are drawn.
      stop_ids: each ends the sequence that draws it.
      stop_strings: each ends a text before it.
      stream: gets the first prompt's text as it grows; its caller finishes it.
      rows: replaces the stop strings by a truncation per prompt, and gives each its PRNG number.
      first: the ids that may come first after each prompt; None for any.
      slots: sequences that are decoded at once; 0 for all of them. Beam search has all at once.
    """
    check_stop_strings(stop_strings)

    def text_of(index: int, ids: list[int]) -> str:
        return whole_characters(functools.partial(decode, index), ids, model.tokenizer.unfinished)

    def show(index: int, ids: list[int]) -> None:
        if index == 0 and stream:
            stream.update(text_of(index, ids))

    def truncated(index: int, text: str) -> str:
        return rows.truncate(index, text) if rows else until(text, stop_strings)

    def stopped(index: int, ids: list[int]) -> bool:
        # Decoded as one text: a stop string may begin in one token and end in the next.
        text = text_of(index, ids)
        return truncated(index, text) != text

    # Without a stop condition the engine is free to run long chunks (see `Engine._decode`).
    stop = stopped if rows or stop_strings else None
    # The embedding may be padded beyond the tokenizer's vocabulary, or, for a model without
    # infilling, lack the sentinels that the tokenizer has. Only ids that both know can be drawn.
    vocab = min(model.config.vocab_size, model.tokenizer.vocab_size)
    new: Iterable[tuple[int, list[int]]]
    if sampling.beams > 1:
        ranks = rows.ranks if rows else None
        new = enumerate(_searched(model, prompts, sampling, stop_ids, stop, vocab, first, ranks))
    else:
        new = generate_each(
            model,
            prompts,
            sampling,
            stop_ids,
            stop=stop,
            on_tokens=show if stream else None,
            vocab=vocab,
            numbers=rows.numbers if rows else None,
            first=first,
            slots=slots,
        )
    for index, ids in new:
        text = text_of(index, ids)
        kept = truncated(index, text)
        # The engine returns fewer ids than `max_new_tokens` only after a stop id or `stop`.
        is_ended = kept != text or len(ids) < sampling.max_new_tokens
        yield index, Generated(kept, is_ended)


def in_order(generated: Iterable[tuple[int, Item]]) -> list[Item]:
    """Returns items by their indices, which come in any order."""
    by_index = dict(generated)
    return [by_index[index] for index in range(len(by_index))]


def _searched(
    model: TrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int],
    stop: Callable[[int, list[int]], bool] | None,
    vocab: int,
    first: Sequence[np.ndarray | None] | None,
    ranks: Sequence[int] | None,
) -> list[list[int]]:
    """Returns new ids by beam search. Arguments: as in `beam.beam_search`, and those of `Rows`."""
    # Samples of one task differ in their rank alone: one search has them all.
    places: dict[tuple[int, ...], int] = {}
    for index, prompt in enumerate(prompts):
        places.setdefault(tuple(prompt), index)
    indices = list(places.values())

    def stopped(search: int, ids: list[int]) -> bool:
        assert stop is not None
        return stop(indices[search], ids)

    searched = beam_search(
        model,
        [prompts[index] for index in indices],
        sampling,
        stop_ids,
        stop=stopped if stop else None,
        vocab=vocab,
        first=[first[index] for index in indices] if first else None,
    )
    beams_of = dict(zip(places, searched))
    new = []
    for index, prompt in enumerate(prompts):
        beams = beams_of[tuple(prompt)]
        # A vocabulary that `first` restricts may have fewer continuations than beams.
        rank = min(ranks[index], len(beams) - 1) if ranks else 0
        new.append(beams[rank].ids)
    return new


def complete(
    model: TrainedModel,
    prompts: Sequence[str],
    sampling: Sampling,
    stop_strings: Sequence[str] = (),
    stream: Callable[[str], None] | None = None,
    healing: bool = False,
) -> list[str]:
    """Returns the text after each prompt, up to EOS or a stop string.

    Args:
      model, prompts, sampling, stop_strings, healing: as in `complete_each`.
      stream: gets the pieces of the first prompt's text as they come.
    """
    out = Stream(stream, stop_strings) if stream else None
    texts = in_order(
        complete_each(model, prompts, sampling, stop_strings, stream=out, healing=healing)
    )
    if out:
        out.finish(texts[0])
    return texts


def complete_each(
    model: TrainedModel,
    prompts: Sequence[str],
    sampling: Sampling,
    stop_strings: Sequence[str] = (),
    rows: Rows | None = None,
    stream: Stream | None = None,
    healing: bool = False,
    slots: int = 0,
) -> Iterator[tuple[int, str]]:
    """Yields the index of each prompt and the text after it, as soon as it ends.

    Prompts are taken as they are, trailing white space included.

    Args:
      model: the model and its tokenizer.
      prompts: texts.
      sampling: how tokens are drawn.
      stop_strings: each ends a text before it.
      rows: replaces the stop strings by a truncation per prompt, and gives each its PRNG number.
      stream: gets the first prompt's text as it grows; its caller finishes it.
      healing: lets the first token end the one in which a prompt stops (see `healing.py`).
      slots: sequences that are decoded at once; 0 for all of them.
    """
    encoded = [model.tokenizer.prompt(prompt) for prompt in prompts]
    decode, first = continuation(model, prompts), None
    if healing:
        encoded, decode, first = healed_prompts(model, encoded, prompts)
    eos = [model.tokenizer.eos_id]
    generated = generate_text_each(
        model, encoded, decode, sampling, eos, stop_strings, stream, rows, first, slots
    )
    for index, completion in generated:
        yield index, completion.text


def continuation(model: TrainedModel, prompts: Sequence[str]) -> Decode:
    """Returns the decoding of ids that follow encoded prompts.

    After an empty prompt the first token carries the leading space.
    """

    def decode(index: int, ids: list[int]) -> str:
        # SentencePiece marks a word by a space before it, and adds one at the start of a text.
        # Between a prompt and its continuation the space is part of the text; at the very start it
        # is not.
        return model.tokenizer.decode(ids, leading_space=not prompts[index])

    return decode


def healed_prompts(
    model: TrainedModel, encoded: Sequence[Sequence[int]], prompts: Sequence[str]
) -> tuple[list[list[int]], Decode, list[np.ndarray | None]]:
    """Backs prompts up by token healing. `prompts` are the texts at the ends of `encoded`.

    Returns the ids to continue from, the decoding of the ids after them, and for each prompt the
    ids that may come first.
    """
    healed, plain = heal(model, encoded), continuation(model, prompts)

    def decode(index: int, ids: list[int]) -> str:
        # The new ids repeat the characters removed, which are already in the prompt's text.
        return plain(index, ids)[len(healed[index].removed) :]

    ids = [prompt.ids for prompt in healed]
    return ids, decode, [prompt.first for prompt in healed]
