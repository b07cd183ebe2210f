"""Fills in the middle between a prefix and a suffix (Code Llama, section 2.3)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

from codellama_jax.data.infilling import prompt_ids
from codellama_jax.errors import UserError
from codellama_jax.generation.middle import without_infilling, without_ramble
from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import (
    Decode,
    Generated,
    Rows,
    Stream,
    continuation,
    generate_text_each,
    healed_prompts,
    in_order,
)
from codellama_jax.models.trained import TrainedModel


def infill(
    model: TrainedModel,
    pairs: Sequence[tuple[str, str]],
    sampling: Sampling,
    spm: bool = False,
    stop_strings: Sequence[str] = (),
    healing: bool = False,
) -> list[str]:
    """Returns the middle of each (prefix, suffix), up to EOT or a stop string.

    Args: as in `infill_each`.
    """
    generated = infill_each(model, pairs, sampling, spm, stop_strings, healing=healing)
    return [middle.text for middle in in_order(generated)]


def infill_one(
    model: TrainedModel,
    prefix: str,
    suffix: str,
    sampling: Sampling,
    spm: bool = False,
    stop_strings: Sequence[str] = (),
    stream: Callable[[str], None] | None = None,
    healing: bool = False,
) -> Generated:
    """Returns the middle to put between prefix and suffix, and whether the model ended it.

    A middle that never reaches EOT is truncated by `without_ramble`.

    Args:
      model, sampling, spm, stop_strings, healing: as in `infill`.
      prefix: text before the middle.
      suffix: text after it.
      stream: gets the pieces of the middle as they come, never what is truncated later.
    """
    # What is streamed and what is returned are truncated alike. The stream assumes the worst, a
    # middle without an end, so that it never shows a line that is taken back.
    shown = functools.partial(without_ramble, prefix=prefix, suffix=suffix)
    out = Stream(stream, stop_strings, shown) if stream else None
    pairs = [(prefix, suffix)]
    generated = infill_each(model, pairs, sampling, spm, stop_strings, stream=out, healing=healing)
    (middle,) = in_order(generated)
    if not middle.is_ended:
        middle = Generated(shown(middle.text), False)
    if out:
        out.finish(middle.text)
    return middle


def infill_each(
    model: TrainedModel,
    pairs: Sequence[tuple[str, str]],
    sampling: Sampling,
    spm: bool = False,
    stop_strings: Sequence[str] = (),
    rows: Rows | None = None,
    stream: Stream | None = None,
    healing: bool = False,
    slots: int = 0,
) -> Iterator[tuple[int, Generated]]:
    """Yields the index of each (prefix, suffix) and its middle, as soon as it ends.

    Raises UserError for a model that was trained without infilling.

    Args:
      model: the model and its tokenizer.
      pairs: texts before and after each middle.
      sampling: how tokens are drawn.
      spm: suffix-prefix-middle order, in which the middle continues the prefix's tokens. In
        prefix-suffix-middle order it begins with separate tokens and no leading space.
      stop_strings: each ends a middle before it.
      rows: replaces the stop strings by a truncation per middle, and gives each its PRNG number.
      stream: gets the first middle as it grows; its caller finishes it.
      healing: lets an SPM middle also end the token in which its prefix stops.
      slots: sequences that are decoded at once; 0 for all of them.
    """
    tokenizer = model.tokenizer
    # Sentinels may be appended to a vocabulary; a model without embeddings for them never trained
    # on them.
    if model.config.vocab_size < tokenizer.vocab_size:
        raise UserError(without_infilling(model.name))
    prompts = [prompt_ids(tokenizer, prefix, suffix, spm) for prefix, suffix in pairs]
    prefixes, first = [prefix for prefix, _ in pairs], None
    decode: Decode
    # Only in SPM order does text, the prefix, end the prompt: PSM ends with the MID sentinel, and a
    # token border is right there.
    if spm and healing:
        prompts, decode, first = healed_prompts(model, prompts, prefixes)
    elif spm:
        decode = continuation(model, prefixes)
    else:
        # The middle token precedes a PSM middle, so that its first piece has no leading space.
        decode = continuation(model, ["text"] * len(pairs))
    # EOT ends a middle in training; a model may also write the rest of the document up to EOS.
    ends = [tokenizer.eot_id, tokenizer.eos_id]
    return generate_text_each(
        model, prompts, decode, sampling, ends, stop_strings, stream, rows, first, slots
    )
