"""Fills in the middle between a prefix and a suffix (Code Llama, section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codellama_jax.data.infilling import prompt_ids
from codellama_jax.errors import UserError
from codellama_jax.generation.healing import heal
from codellama_jax.generation.sampler import Sampling
from codellama_jax.generation.text import Rows, continuation, generate_text
from codellama_jax.training.checkpoint import Run

FILL_ME = "<FILL_ME>"


def split_fill(text: str) -> tuple[str, str]:
    """Returns what stands before and after the mark. Raises UserError unless there is exactly one."""
    if text.count(FILL_ME) != 1:
        raise UserError(f"the text holds {text.count(FILL_ME)} marks {FILL_ME}: put exactly one where the middle is wanted")
    prefix, _, suffix = text.partition(FILL_ME)
    return prefix, suffix


def infill(
    run: Run,
    pairs: Sequence[tuple[str, str]],
    sampling: Sampling,
    spm: bool = False,
    stop_strings: Sequence[str] = (),
    stream: Callable[[str], None] | None = None,
    rows: Rows | None = None,
    healing: bool = False,
) -> list[str]:
    """Returns the middle of each (prefix, suffix), up to EOT or a stop string.

    In SPM the middle goes on from the prefix's tokens, in PSM it begins with tokens of its own and no leading space.
    With `healing` an SPM middle may also end the token in which its prefix is cut off.
    Raises UserError for a model that was trained without infilling.
    """
    tokenizer = run.tokenizer
    if run.model.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"{run.name} was trained without infilling: its vocabulary has no sentinels; take complete, or a model that has them"
        )
    prompts, first = [prompt_ids(tokenizer, prefix, suffix, spm) for prefix, suffix in pairs], None
    if spm:
        decode = continuation(run, [prefix for prefix, _ in pairs])
        if healing:
            prompts, removed, first, _ = zip(*heal(run, prompts))
            decode = lambda row, ids: tokenizer.decode(ids, leading_space=not pairs[row][0])[len(removed[row]) :]
    else:
        decode = lambda row, ids: tokenizer.decode(ids, leading_space=False)
    return generate_text(run, prompts, decode, sampling, [tokenizer.eot_id, tokenizer.eos_id], stop_strings, stream, rows, first)
