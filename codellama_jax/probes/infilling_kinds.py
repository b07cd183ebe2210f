"""Infilling of held-out code by what is cut out of it: a line, several, or a random span (after Code Llama, tables 6 and 14).

There a middle counts as right when tests pass, here when it is the same text. A toy model seldom writes that, so two measures
beside it are graded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.data.infilling import infill_ids, prompt_ids
from codellama_jax.errors import UserError
from codellama_jax.generation.healing import heal
from codellama_jax.generation.sampler import Sampling
from codellama_jax.generation.scoring import document_losses
from codellama_jax.probes.infilling import (
    Cuts,
    Example,
    fill,
    held_out_examples,
    random_spans,
    several_lines,
    single_lines,
)


class Kind(NamedTuple):
    cuts: Cuts
    stop_strings: tuple[str, ...] = ()
    healing: bool = (
        False  # only where a prefix may end inside a token: no piece goes across a newline
    )


class Format(NamedTuple):
    spm: bool
    healing: bool = False


KINDS = {
    "single-line": Kind(single_lines, ("\n",)),
    "multi-line": Kind(several_lines),
    "random-span": Kind(random_spans, healing=True),
}
FORMATS = {"PSM": Format(False), "SPM": Format(True), "SPM, healed": Format(True, healing=True)}

Measures = dict[str, list[float]]


def infilling_by_kind(
    run: Run,
    texts: Sequence[str],
    kinds: Sequence[str],
    count: int,
    seq_len: int,
    max_new_tokens: int,
    seed: int,
) -> dict[str, dict[str, Measures]]:
    """Fills `count` middles of each kind, or as many as there are, greedily and in each format; the same ones for the same seed.

    One number an example: `exact`, 1.0 where the text comes out but for trailing spaces; `right`, the share of its characters
    before the first wrong one; `loss`, nats a character of the true middle, given the text of the prefix, EOT left out.
    Raises UserError for an unknown kind, or if the texts hold no example of one.
    """
    if unknown := set(kinds) - set(KINDS):
        raise UserError(
            f"no kind of infilling {', '.join(sorted(unknown))}: there are {', '.join(KINDS)}"
        )
    found: dict[str, dict[str, Measures]] = {}
    for name in kinds:
        kind = KINDS[name]
        examples = held_out_examples(
            kind.cuts, run.tokenizer, texts, count, seq_len, max_new_tokens, seed
        )
        if not examples:
            raise UserError(
                f"no held-out document that fits {seq_len} tokens has a {name} middle of at most {max_new_tokens}"
            )
        formats = {name: form for name, form in FORMATS.items() if kind.healing or not form.healing}
        found[name] = {
            name: _measures(run, examples, max_new_tokens, kind, form)
            for name, form in formats.items()
        }
    return found


def _measures(
    run: Run, examples: list[Example], max_new_tokens: int, kind: Kind, form: Format
) -> Measures:
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    texts = fill(run, examples, sampling, form.spm, kind.stop_strings, form.healing)
    middles = [e.middle.rstrip() for e in examples]
    return {
        "exact": [float(text.rstrip() == middle) for text, middle in zip(texts, middles)],
        "right": [_right(text, middle) / len(middle) for text, middle in zip(texts, middles)],
        "loss": [
            loss / len(e.middle) for loss, e in zip(middle_losses(run, examples, form), examples)
        ],
    }


def _right(text: str, truth: str) -> int:
    """How many characters of the truth the text begins with."""
    return next(
        (i for i, (a, b) in enumerate(zip(text, truth)) if a != b), min(len(text), len(truth))
    )


def middle_losses(run: Run, examples: Sequence[Example], form: Format) -> list[float]:
    """Returns -log p in nats of each whole middle after its prompt.

    With healing, of prefix and middle encoded as one text, given that the text begins with the prefix.
    """
    tokenizer = run.tokenizer
    prompts = [prompt_ids(tokenizer, e.prefix, e.suffix, form.spm) for e in examples]
    if not form.healing:
        wholes = [
            [*prompt, *tokenizer.encode(e.middle, leading_space=False)]
            for prompt, e in zip(prompts, examples)
        ]
        return [
            float(losses[len(prompt) - 1 :].sum())
            for losses, prompt in zip(document_losses(run, wholes), prompts)
        ]
    joined = [infill_ids(tokenizer, *e, spm=True)[:-1] for e in examples]
    of_text, of_prompt = (
        [float(losses.sum()) for losses in document_losses(run, ids)] for ids in (joined, prompts)
    )
    odds = [healed.log_odds for healed in heal(run, prompts)]
    return [whole - prompt + log_odds for whole, prompt, log_odds in zip(of_text, of_prompt, odds)]
