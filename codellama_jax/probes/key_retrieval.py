"""Key retrieval for models of any size: the benchmark's prompts, scored without generating.

See Code Llama, tables 17 and 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codellama_jax.config import Examples, Probe, Share, Tokens
from codellama_jax.errors import UserError
from codellama_jax.probes.subject import Subject

if TYPE_CHECKING:
    from codellama_jax.benchmarks.benchmark import Task
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.sentencepiece import Tokenizer

DIGITS = "0123456789"

Measures = dict[str, list[float]]


@dataclass(frozen=True)
class KeyRetrieval(Probe, name="key_retrieval"):
    """Prompts that hide a two-digit key at a position of a long text.

    `retrieved`, of each prompt: 1.0 if the most likely continuation is the key. `gain`, of each
    pair of prompts that differ only in their key: how many nats more likely each key is where it is
    hidden than the other one; 0 for a model that does not read the key.
    """

    lengths: tuple[Tokens, ...]  # of the prompts
    positions: tuple[Share, ...] = (0.0, 0.2, 0.4)  # of the key, as a share of the prompt
    examples: Examples = 64  # of each length and position

    def measure(self, subject: Subject) -> dict[str, dict[str, Measures]]:
        """Raises UserError for too little filler, or a tokenizer that does not split digits."""
        from codellama_jax.benchmarks.suites.key_retrieval import lines_of, task_of

        tokenizer = subject.model.tokenizer
        lines = list(lines_of(subject.files, tokenizer))
        digits = digit_ids(tokenizer)
        answers: dict[str, dict[str, Measures]] = {}
        for length in self.lengths:
            answers[str(length)] = {}
            for position in self.positions:
                prompts: list[tuple[str, int]] = []
                for number in range(-(-self.examples // 2)):
                    prompts += _both_ways(task_of(lines, tokenizer, length, position, number))
                answers[str(length)][f"{position:g}"] = _measures(subject.model, prompts, digits)
        return answers


def other_key(key: int) -> int:
    """Returns a key that differs in both digits."""
    tens, ones = divmod(key, 10)
    return 10 * ((tens + 3) % 9 + 1) + (ones + 5) % 10


def digit_ids(tokenizer: Tokenizer) -> list[int]:
    """Returns the id of each digit. Raises UserError where digits are not split."""
    ids = [tokenizer.encode(digit, leading_space=False) for digit in DIGITS]
    both = tokenizer.encode("12", leading_space=False)
    if any(len(of_digit) > 1 for of_digit in ids) or both != [*ids[1], *ids[2]]:
        fix = "use a tokenizer that splits digits, as Llama's does"
        raise UserError(f"key retrieval reads keys digit by digit: {fix}")
    return [of_digit[0] for of_digit in ids]


def _both_ways(task: Task) -> list[tuple[str, int]]:
    """Returns four pairs (prompt, key to score): each of two keys hidden, both of them scored.

    The hidden key is scored first.
    """
    one, two = task.record["value"], other_key(task.record["value"])
    return [
        (_hiding(task, one), one),
        (_hiding(task, one), two),
        (_hiding(task, two), two),
        (_hiding(task, two), one),
    ]


def _hiding(task: Task, key: int) -> str:
    from codellama_jax.benchmarks.suites.key_retrieval import KEY

    return task.prompt.replace(KEY.format(**task.record), KEY.format(value=key))


def _measures(
    model: TrainedModel, prompts: Sequence[tuple[str, int]], digits: Sequence[int]
) -> Measures:
    from codellama_jax.generation.scoring import last_logits

    ids = [
        [model.tokenizer.bos_id, *model.tokenizer.encode(f"{text}{key}")] for text, key in prompts
    ]
    # Of the token before the key, in it, and after it.
    logits_B3V = last_logits(model, ids, 3)[:, ::-1].astype(np.float64)
    keys_B2 = np.array([[digits[int(digit)] for digit in str(key)] for _, key in prompts])
    best_B3 = logits_B3V.argmax(-1)
    retrieved_B = (best_B3[:, :2] == keys_B2).all(1) & ~np.isin(best_B3[:, 2], digits)
    logits_B2 = np.take_along_axis(logits_B3V[:, :2], keys_B2[:, :, None], axis=2)[:, :, 0]
    logp_B = (logits_B2 - np.logaddexp.reduce(logits_B3V[:, :2], axis=-1)).sum(axis=1)
    gain_B = logp_B[::2] - logp_B[1::2]
    return {
        "retrieved": retrieved_B[::2].astype(float).tolist(),
        "gain": gain_B.reshape(-1, 2).mean(axis=1).tolist(),
    }
