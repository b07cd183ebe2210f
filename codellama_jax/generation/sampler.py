"""Generates after given prompts: a sequence starts at once, or waits for a slot of the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict, Unpack

import numpy as np

from codellama_jax.generation.engine import Engine
from codellama_jax.generation.requests import Request
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.trained import TrainedModel


class Options(TypedDict, total=False):
    """Options of `generate` and `generate_each`.

    Attributes:
      stop: called with the index of a prompt and all its new ids, returns whether they suffice. The
        sequence ends with the first id for which it is true. It must be monotone: more ids never
        turn true into false.
      on_tokens: called with the index of a prompt and all its new ids whenever there are more.
      vocab: ids from here on, which pad the vocabulary, are never drawn.
      numbers: one per prompt, below 2**32. A sequence's PRNG key is folded from the seed and its
        number. They are 0, 1, 2, ... unless given.
      first: for each prompt the ids that may come first; None for any.
      slots: sequences that are decoded at once, at most; 0 for all of them.
    """

    stop: Callable[[int, list[int]], bool] | None
    on_tokens: Callable[[int, list[int]], None] | None
    vocab: int | None
    numbers: Sequence[int] | None
    first: Sequence[np.ndarray | None] | None
    slots: int


def generate(
    model: TrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int] = (),
    **options: Unpack[Options],
) -> list[list[int]]:
    """Returns the new ids after each prompt, up to the first that ends it.

    The ids after a prompt do not depend on the other prompts. Raises UserError for a prompt that is
    empty, too long, or of another vocabulary, and where memory does not suffice.

    Args:
      model: the model. Its decoding weights are prepared by the first call.
      prompts: ids of any lengths, BOS included where wanted. Equal ones are read once.
      sampling: how tokens are drawn, and at most how many.
      stop_ids: at most 4 ids; each ends a sequence and is not returned.
      options: see `Options`.
    """
    new = dict(generate_each(model, prompts, sampling, stop_ids, **options))
    return [new[index] for index in range(len(prompts))]


def generate_each(
    model: TrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int] = (),
    **options: Unpack[Options],
) -> Iterator[tuple[int, list[int]]]:
    """Yields the index of each prompt and its new ids as soon as its sequence ends.

    Args:
      model, prompts, sampling, stop_ids, options: as in `generate`.
    """
    if not prompts:
        return
    stop, on_tokens = options.get("stop"), options.get("on_tokens")
    numbers, first = options.get("numbers"), options.get("first")
    requests = []
    # The number of a request is its index unless given, so that equal prompts draw different
    # samples.
    for index, prompt in enumerate(prompts):
        request = Request(
            prompt,
            sampling,
            stop_ids,
            functools.partial(stop, index) if stop else None,
            functools.partial(on_tokens, index) if on_tokens else None,
            numbers[index] if numbers else index,
            first[index] if first else None,
        )
        requests.append(request)
    # Few shapes: a batch of all prompts has the next power of two. More slots would be idle.
    most = 1 << (len(prompts) - 1).bit_length()
    slots = min(options.get("slots") or most, most)
    # A new engine per call: nothing is shared between calls, and the cache is freed at the end.
    yield from Engine(model, slots, options.get("vocab")).each(requests)
