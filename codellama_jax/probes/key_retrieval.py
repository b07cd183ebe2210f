"""Key retrieval (Code Llama, tables 17 and 18), scored without generating.

The prompts are those of the benchmark `key_retrieval`. A toy model seldom generates the key, so the
probe also measures how much more probable the hidden key is than another one.
"""

from __future__ import annotations

import math
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
    from codellama_jax.tokenizers.base import Tokenizer

DIGITS = "0123456789"

Measures = dict[str, list[float]]


@dataclass(frozen=True)
class KeyRetrieval(Probe, name="key_retrieval"):
    """Prompts that hide a two-digit key at a position of a long text.

    The measures of each length and position are:

    - `retrieved`: for each prompt, 1.0 if the most likely continuation is the key, otherwise 0.0.
    - `gain`: for each two prompts that differ only in their key, log p(key) of the key that the
      prompt hides minus log p of that key after the other prompt, in nats, averaged over both.
      It is 0 for a model that ignores the key, whichever numbers it prefers.
    """

    lengths: tuple[Tokens, ...]  # of the prompts, in tokens
    positions: tuple[Share, ...] = (0.0, 0.2, 0.4)  # of the key, as a share of the prompt
    examples: Examples = 64  # prompts for each length and position

    def measure(self, subject: Subject) -> dict[str, dict[str, Measures]]:
        """Returns the measures by length and position.

        Raises UserError if the files are too short for the longest prompt, and for a tokenizer that
        does not split digits.
        """
        from codellama_jax.benchmarks.suites.key_retrieval import lines_of, task_of

        tokenizer = subject.model.tokenizer
        lines = list(lines_of(subject.files, tokenizer))
        digits = digit_ids(tokenizer)
        answers: dict[str, dict[str, Measures]] = {}
        for length in self.lengths:
            answers[str(length)] = {}
            for position in self.positions:
                prompts: list[tuple[str, int]] = []
                # Each task gives two examples, one for each of its two keys.
                for number in range(math.ceil(self.examples / 2)):
                    prompts += _key_pairs(task_of(lines, tokenizer, length, position, number))
                answers[str(length)][f"{position:g}"] = _measures(subject.model, prompts, digits)
        return answers


def other_key(key: int) -> int:
    """Returns a two-digit key that differs from `key` in both digits."""
    tens, ones = divmod(key, 10)
    # The tens digit runs over 1 to 9, because a key has two digits.
    return 10 * ((tens + 3) % 9 + 1) + (ones + 5) % 10


def digit_ids(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of the digits 0 to 9. Raises UserError unless each digit is a token."""
    ids = []
    for digit in DIGITS:
        ids += tokenizer.encode(digit, leading_space=False)
    number = tokenizer.encode("12", leading_space=False)
    if len(ids) != len(DIGITS) or number != [ids[1], ids[2]]:
        fix = "use a tokenizer that splits digits, as Llama's does"
        raise UserError(f"key retrieval reads keys digit by digit: {fix}")
    return ids


def _key_pairs(task: Task) -> list[tuple[str, int]]:
    """Returns four pairs of a prompt and the key to score after it.

    Two prompts differ only in the key that they hide. Both keys are scored after each prompt, the
    hidden one first.
    """
    key = task.record["value"]
    other = other_key(key)
    # Models prefer some numbers over others. Two prompts and two keys cancel that preference: see
    # the measure `gain`.
    return [
        (_hiding(task, key), key),
        (_hiding(task, key), other),
        (_hiding(task, other), other),
        (_hiding(task, other), key),
    ]


def _hiding(task: Task, key: int) -> str:
    """Returns the prompt of a task with `key` in the place of the task's key."""
    from codellama_jax.benchmarks.suites.key_retrieval import KEY

    return task.prompt.replace(KEY.format(**task.record), KEY.format(value=key))


def _measures(
    model: TrainedModel, prompts: Sequence[tuple[str, int]], digits: Sequence[int]
) -> Measures:
    """Returns the measures of pairs of a prompt and a key, four per task as in `_key_pairs`."""
    from codellama_jax.generation.scoring import last_logits

    # One forward pass of prompt and key gives the logits of the key's first digit, of its second
    # and of the token after it. last_logits returns the last position first.
    ids, keys = [], []
    for text, key in prompts:
        ids.append(model.tokenizer.prompt(f"{text}{key}"))
        tens, ones = divmod(key, 10)
        keys.append([digits[tens], digits[ones]])
    logits_B3V = last_logits(model, ids, 3)[:, ::-1].astype(np.float64)
    keys_B2 = np.array(keys)
    # Retrieved as by greedy decoding: both digits are the argmax, and no third digit follows.
    best_B3 = logits_B3V.argmax(-1)
    retrieved_B = (best_B3[:, :2] == keys_B2).all(1) & ~np.isin(best_B3[:, 2], digits)
    logits_B2 = np.take_along_axis(logits_B3V[:, :2], keys_B2[:, :, None], axis=2)[:, :, 0]
    # log-softmax at the chosen digits, summed over the two digits of the key.
    logp_B = (logits_B2 - np.logaddexp.reduce(logits_B3V[:, :2], axis=-1)).sum(axis=1)
    # Even entries score the hidden key, odd ones the other key after the same prompt.
    gain_B = logp_B[::2] - logp_B[1::2]
    return {
        "retrieved": retrieved_B[::2].astype(float).tolist(),
        "gain": gain_B.reshape(-1, 2).mean(axis=1).tolist(),
    }
