"""pass@k against temperature on a task for toy models: the end of a held-out line.

After Code Llama, figure 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np

from codellama_jax.checked import Range
from codellama_jax.config import Examples, Probe
from codellama_jax.errors import UserError
from codellama_jax.probes.held_out import held_out_examples, single_lines
from codellama_jax.probes.subject import Subject

if TYPE_CHECKING:
    from codellama_jax.generation.sampler import Sampling
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.sentencepiece import Tokenizer

HELD_BACK = 2  # tokens of a line that the model must write
LEAST = 2  # tokens of it that it reads
NEW_TOKENS = 8  # the same text may be written in more and shorter ones
ROWS = 512  # sampled at once
TOP_P = 0.95  # the paper's
KS = (1, 10, 100)


@dataclass(frozen=True)
class LineEnds(Probe, name="line_ends"):
    """The end of each line, sampled many times at each temperature, with the paper's top-p.

    For each temperature: `passed`, how many samples of each line are exact but for trailing spaces;
    `samples`, their number per line; and `pass@k` for those k that the samples allow.
    """

    temperatures: tuple[Annotated[float, Range(0, 100)], ...]
    lines: Examples = 64
    samples: Examples = 200  # of each line; greedy ones are drawn once

    def measure(self, subject: Subject) -> dict[str, dict[str, Any]]:
        """Raises UserError if the documents have no line to end."""
        from codellama_jax.benchmarks.pass_at_k import pass_at_k
        from codellama_jax.generation.sampler import Sampling

        model, seq_len, seed = subject.model, subject.seq_len, subject.seed
        lines = unfinished_lines(model.tokenizer, subject.documents, self.lines, seq_len, seed)
        if not lines:
            raise UserError(f"no held-out document has a line within {seq_len} tokens to end")
        answers: dict[str, dict[str, Any]] = {}
        for temperature in self.temperatures:
            samples = self.samples if temperature else 1
            passed = _passed(
                model, lines, Sampling(temperature, 0, TOP_P, NEW_TOKENS, seed), samples
            )
            answer: dict[str, Any] = {"passed": passed, "samples": samples}
            for k in KS:
                if k <= samples:
                    values = [pass_at_k(samples, count, k) for count in passed]
                    answer[f"pass@{k}"] = float(np.mean(values))
            answers[f"{temperature:g}"] = answer
        return answers


class UnfinishedLine(NamedTuple):
    """The ids before a line's end, BOS first, and the text of the end."""

    prompt: list[int]
    end: str


def unfinished_lines(
    tokenizer: Tokenizer, texts: Sequence[str], count: int, seq_len: int, seed: int
) -> list[UnfinishedLine]:
    """Picks `count` lines of held-out documents, or as many as there are.

    They are the same for the same seed. Documents have at most `seq_len` tokens.
    """
    # Twice as many as needed: some are too short.
    limits = (2 * count, seq_len, seq_len, seed)
    lines = []
    for example in held_out_examples(single_lines, tokenizer, texts, *limits):
        if beginning := _beginning(tokenizer, example.middle):
            ids = tokenizer.encode(example.prefix + beginning)
            end = example.middle[len(beginning) :].rstrip()
            lines.append(UnfinishedLine([tokenizer.bos_id, *ids], end))
    return lines[:count]


def _beginning(tokenizer: Tokenizer, line: str) -> str:
    """Returns a line without its last tokens.

    Returns "" for a line that is too short, or whose beginning would have other tokens.
    """
    ids = tokenizer.encode(line, leading_space=False)[:-HELD_BACK]
    text = tokenizer.decode(ids, leading_space=False)
    same = tokenizer.encode(text, leading_space=False) == ids
    return text if len(ids) >= LEAST and text.strip() and same else ""


def _passed(
    model: TrainedModel, lines: Sequence[UnfinishedLine], sampling: Sampling, samples: int
) -> list[int]:
    """Returns how many of the samples of each line are exact."""
    from codellama_jax.generation.sampler import generate

    tokenizer = model.tokenizer
    stop_ids = [tokenizer.eos_id, *tokenizer.encode("\n", leading_space=False)]
    wanted = [line for line in lines for _ in range(samples)]
    passed: list[bool] = []
    for start in range(0, len(wanted), ROWS):
        batch = wanted[start : start + ROWS]
        generated = generate(
            model,
            [line.prompt for line in batch],
            sampling,
            stop_ids,
            vocab=tokenizer.pieces,
            numbers=range(start, start + len(batch)),  # each sample has its own PRNG key
        )
        for ids, line in zip(generated, batch):
            passed.append(tokenizer.decode(ids, leading_space=False).rstrip() == line.end)
    return np.reshape(passed, (len(lines), samples)).sum(axis=1).tolist()
