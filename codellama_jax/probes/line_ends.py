"""pass@k against temperature on a task that a toy model can do: the end of a held-out line (after Code Llama, figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from codellama_jax.benchmarks.pass_at_k import pass_at_k
from codellama_jax.errors import UserError
from codellama_jax.generation.sampler import Sampling, generate
from codellama_jax.models.trained import Run
from codellama_jax.probes.infilling import held_out_examples, single_lines
from codellama_jax.tokenizers.sentencepiece import Tokenizer

HELD_BACK = 2  # tokens of a line to be written
LEAST = 2  # tokens of it that are shown
NEW_TOKENS = 8  # the same text may be written in more and shorter ones
ROWS = 512  # sampled at once
TOP_P = 0.95  # the paper's
KS = (1, 10, 100)


class LineEnd(NamedTuple):
    prompt: list[int]  # BOS, what stands before the line and its beginning, cut where a token ends
    end: str  # the rest of the line


def line_ends(
    tokenizer: Tokenizer, texts: Sequence[str], count: int, seq_len: int, seed: int
) -> list[LineEnd]:
    """Picks `count` lines of held-out documents, or as many as there are; the same ones for the same seed."""
    examples = held_out_examples(
        single_lines, tokenizer, texts, 2 * count, seq_len, seq_len, seed
    )  # some are too short
    begun = [(e, shown) for e in examples if (shown := _begun(tokenizer, e.middle))]
    return [
        LineEnd(
            [tokenizer.bos_id, *tokenizer.encode(e.prefix + shown)], e.middle[len(shown) :].rstrip()
        )
        for e, shown in begun[:count]
    ]


def _begun(tokenizer: Tokenizer, line: str) -> str:
    """Returns a line but for its last tokens; nothing if it is too short, or if what is left would be encoded in another way."""
    ids = tokenizer.encode(line, leading_space=False)[:-HELD_BACK]
    text = tokenizer.decode(ids, leading_space=False)
    return (
        text
        if len(ids) >= LEAST and text.strip() and tokenizer.encode(text, leading_space=False) == ids
        else ""
    )


def pass_by_temperature(
    run: Run,
    texts: Sequence[str],
    temperatures: Sequence[float],
    count: int,
    samples: int,
    seq_len: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Samples each line's end so many times at each temperature, with the paper's top-p.

    Of each temperature: `passed`, how many samples of each line are exact but for trailing spaces; `samples`, of how many; and
    `pass@k` for those k that the samples allow. Raises UserError if the texts hold no line to end.
    """
    tasks = line_ends(run.tokenizer, texts, count, seq_len, seed)
    if not tasks:
        raise UserError(f"no held-out document holds a line within {seq_len} tokens to end")
    found: dict[str, dict[str, Any]] = {}
    for temperature in temperatures:
        drawn = samples if temperature else 1
        passed = _passed(run, tasks, Sampling(temperature, 0, TOP_P, NEW_TOKENS, seed), drawn)
        means = {
            f"pass@{k}": float(np.mean([pass_at_k(drawn, c, k) for c in passed]))
            for k in KS
            if k <= drawn
        }
        found[f"{temperature:g}"] = {"passed": passed, "samples": drawn, **means}
    return found


def _passed(run: Run, tasks: Sequence[LineEnd], sampling: Sampling, samples: int) -> list[int]:
    tokenizer = run.tokenizer
    stop_ids = [tokenizer.eos_id, *tokenizer.encode("\n", leading_space=False)]
    wanted = [task for task in tasks for _ in range(samples)]
    passed: list[bool] = []
    for start in range(0, len(wanted), ROWS):
        some = wanted[start : start + ROWS]
        numbers = range(start, start + len(some))  # each sample's chance is its own
        new = generate(
            run.model,
            run.params,
            [t.prompt for t in some],
            sampling,
            stop_ids,
            vocab=tokenizer.pieces,
            numbers=numbers,
        )
        passed += [
            tokenizer.decode(ids, leading_space=False).rstrip() == task.end
            for ids, task in zip(new, some)
        ]
    return np.reshape(passed, (len(tasks), samples)).sum(axis=1).tolist()
