"""Single-line infilling of held-out documents: greedy, exact match, in both formats (the measure of Code Llama, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.data.infilling import infill_ids, prompt_ids
from codellama_jax.generation.infill import infill
from codellama_jax.generation.sampler import Sampling
from codellama_jax.generation.scoring import document_losses
from codellama_jax.tokenizers.sentencepiece import Tokenizer

FORMATS = {"PSM": False, "SPM": True}
CACHED_TOKENS = 65_536  # what bounds the memory of generation
LOSS_EXAMPLES = 128  # whose loss is measured: it needs far fewer than the share of exact lines does


class Example(NamedTuple):
    """A document around its middle. That of one or more lines is whole, its indentation included, its last newline not."""

    prefix: str
    middle: str
    suffix: str


Cuts = Callable[[str, np.random.Generator, int], list[Example]]  # a text cut in up to so many ways


def held_out_examples(
    cuts: Cuts,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    count: int,
    seq_len: int,
    max_new_tokens: int,
    seed: int,
) -> list[Example]:
    """Picks `count` middles, or as many as there are, from documents that fit a training row; the same ones for the same seed.

    A middle is at most `max_new_tokens` long. Each document gives one, or a few where there are fewer documents than wanted.
    """
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    share = -(-count // max(1, len(texts)))
    for index in rng.permutation(len(texts)):
        examples += [
            e
            for e in cuts(texts[index], rng, share)
            if _fits(tokenizer, e, seq_len, max_new_tokens)
        ]
        if len(examples) >= count:
            break
    return examples[:count]


def infilling_by_format(
    run: Run, examples: list[Example], max_new_tokens: int, samples: int
) -> dict[str, dict[str, Any]]:
    """Fills each example in PSM and SPM order, greedily, up to its first newline.

    For each format: `exact`, the share of lines that come out right but for trailing spaces; `examples`, how many; `loss`,
    nats a token of the first `loss_examples` true lines; `samples`, the first few with what was generated.
    """
    return {
        name: _measures(run, examples, max_new_tokens, samples, spm)
        for name, spm in FORMATS.items()
    }


def _measures(
    run: Run, examples: list[Example], max_new_tokens: int, samples: int, spm: bool
) -> dict[str, Any]:
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    generated = [text.split("\n")[0] for text in fill(run, examples, sampling, spm, ("\n",))]
    exact = [text.rstrip() == e.middle.rstrip() for text, e in zip(generated, examples)]
    return {
        "exact": sum(exact) / len(examples),
        "examples": len(examples),
        "loss": middle_loss(run, examples[:LOSS_EXAMPLES], spm),
        "loss_examples": min(len(examples), LOSS_EXAMPLES),
        "samples": [
            {**e._asdict(), "generated": text} for e, text in zip(examples[:samples], generated)
        ],
    }


def fill(
    run: Run,
    examples: list[Example],
    sampling: Sampling,
    spm: bool,
    stop_strings: tuple[str, ...] = (),
    healing: bool = False,
) -> list[str]:
    """Generates in equal batches whose caches hold about CACHED_TOKENS."""
    wholes = [infill_ids(run.tokenizer, e.prefix, e.middle, e.suffix, spm) for e in examples]
    batches = -(-len(examples) * (max(map(len, wholes)) + sampling.max_new_tokens) // CACHED_TOKENS)
    rows = -(-len(examples) // batches)
    pairs = [(e.prefix, e.suffix) for e in examples]
    some = [pairs[i : i + rows] for i in range(0, len(pairs), rows)]
    return [
        text
        for batch in some
        for text in infill(run, batch, sampling, spm, stop_strings, healing=healing)
    ]


def middle_loss(run: Run, examples: list[Example], spm: bool) -> float:
    """Returns the mean loss, nats a token, of the true middles after their prompts; EOT is left out."""
    wholes = [infill_ids(run.tokenizer, e.prefix, e.middle, e.suffix, spm) for e in examples]
    prompts = [prompt_ids(run.tokenizer, e.prefix, e.suffix, spm) for e in examples]
    starts = map(_shared, prompts, wholes)
    losses = [losses[start - 1 : -1] for losses, start in zip(document_losses(run, wholes), starts)]
    return float(np.concatenate(losses).mean())


def _shared(prompt: list[int], whole: list[int]) -> int:
    """How many ids they begin with alike: all of the prompt, unless in SPM a token spans prefix and middle."""
    return next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), len(prompt))


def single_lines(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Lines that are not blank, and neither the first nor the last of the text."""
    lines, inner = _inner_lines(text)
    return [_example(lines, i, i + 1) for i in rng.permutation(inner)[:count].astype(int)]


def several_lines(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Two or more lines that follow one another and neither begin nor end with a blank one."""
    lines, inner = _inner_lines(text)
    pairs = [(i, j + 1) for i in inner for j in inner if i < j]
    return [_example(lines, *pairs[n]) for n in rng.permutation(len(pairs))[:count]]


def random_spans(text: str, rng: np.random.Generator, count: int) -> list[Example]:
    """Spans between two characters drawn uniformly, as in training, something before and after them."""
    pairs = [sorted(rng.integers(1, max(2, len(text)), 2)) for _ in range(count)]
    return [Example(text[:i], text[i:j], text[j:]) for i, j in pairs if text[i:j].strip()]


def _inner_lines(text: str) -> tuple[list[str], list[int]]:
    """Returns all lines, and which are not blank, nor the first nor the last."""
    lines = text.split("\n")
    return lines, [i for i in range(1, len(lines) - 1) if lines[i].strip()]


def _example(lines: list[str], i: int, j: int) -> Example:
    return Example(
        "".join(f"{line}\n" for line in lines[:i]),
        "\n".join(lines[i:j]),
        "".join(f"\n{line}" for line in lines[j:]),
    )


def _fits(tokenizer: Tokenizer, example: Example, seq_len: int, max_new_tokens: int) -> bool:
    """Whether the document fits a training row in either format, and the middle what is generated."""
    middle = len(tokenizer.encode(example.middle, leading_space=False))
    whole = max(len(infill_ids(tokenizer, *example, spm)) for spm in FORMATS.values())
    return middle <= max_new_tokens and whole <= seq_len + 1
