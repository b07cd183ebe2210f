"""Key retrieval for models of any size: the benchmark's prompts, asked without generating (Code Llama, tables 17 and 18)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from codellama_jax.benchmarks.benchmark import Task
from codellama_jax.benchmarks.suites import key_retrieval
from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.errors import UserError
from codellama_jax.generation.scoring import last_logits
from codellama_jax.tokenizers.sentencepiece import Tokenizer

DIGITS = "0123456789"

Measures = dict[str, list[float]]


def retrieval(
    run: Run,
    texts: Iterable[str],
    lengths: Sequence[int],
    positions: Sequence[float],
    examples: int,
) -> dict[str, dict[str, Measures]]:
    """Asks for a two-digit key in `examples` prompts of each length, the key at each position; texts are the filler.

    `retrieved`, of each prompt: 1.0 if the most likely continuation is the key. `gain`, of each two prompts that differ in
    nothing but the key: nats by which each key is more likely than the other one where it is hidden; 0 for a model that does not
    look at the key, whatever numbers it likes. Raises UserError for too little filler, or digits that are not split.
    """
    lines = list(key_retrieval.lines_of(texts, run.tokenizer))
    digits = digit_ids(run.tokenizer)
    found: dict[str, dict[str, Measures]] = {}
    for length in lengths:
        for position in positions:
            tasks = [
                key_retrieval.task_of(lines, run.tokenizer, length, position, number)
                for number in range(-(-examples // 2))
            ]
            asked = [one for task in tasks for one in _both_ways(task)]
            found.setdefault(str(length), {})[f"{position:g}"] = _measures(run, asked, digits)
    return found


def other_key(key: int) -> int:
    """Returns a key that differs in both digits."""
    tens, ones = divmod(key, 10)
    return 10 * ((tens + 3) % 9 + 1) + (ones + 5) % 10


def digit_ids(tokenizer: Tokenizer) -> list[int]:
    ids = [tokenizer.encode(digit, leading_space=False) for digit in DIGITS]
    if any(len(some) > 1 for some in ids) or tokenizer.encode("12", leading_space=False) != [
        *ids[1],
        *ids[2],
    ]:
        raise UserError(
            "key retrieval is asked digit by digit: use a tokenizer that splits digits, as Llama's does"
        )
    return [some[0] for some in ids]


def _both_ways(task: Task) -> list[tuple[str, int]]:
    """Returns four (prompt, key): each of two keys hidden, and both asked for, the hidden one first."""
    one, two = task.record["value"], other_key(task.record["value"])
    return [
        (_hiding(task, one), one),
        (_hiding(task, one), two),
        (_hiding(task, two), two),
        (_hiding(task, two), one),
    ]


def _hiding(task: Task, key: int) -> str:
    return task.prompt.replace(
        key_retrieval.KEY.format(**task.record), key_retrieval.KEY.format(value=key)
    )


def _measures(run: Run, asked: Sequence[tuple[str, int]], digits: Sequence[int]) -> Measures:
    wholes = [
        [run.tokenizer.bos_id, *run.tokenizer.encode(f"{prompt}{key}")] for prompt, key in asked
    ]
    logits_B3V = last_logits(run, wholes, 3)[:, ::-1].astype(
        np.float64
    )  # before the key, in it, and after it
    keys_B2 = np.array([[digits[int(digit)] for digit in str(key)] for _, key in asked])
    best_B3 = logits_B3V.argmax(-1)
    retrieved_B = (best_B3[:, :2] == keys_B2).all(1) & ~np.isin(best_B3[:, 2], digits)
    logits_B2 = np.take_along_axis(logits_B3V[:, :2], keys_B2[:, :, None], axis=2)[:, :, 0]
    logp_B = (logits_B2 - np.logaddexp.reduce(logits_B3V[:, :2], axis=-1)).sum(axis=1)
    gain_B = logp_B[::2] - logp_B[1::2]
    return {
        "retrieved": retrieved_B[::2].astype(float).tolist(),
        "gain": gain_B.reshape(-1, 2).mean(axis=1).tolist(),
    }
