"""pass@k by temperature (after Code Llama, figure 6) on a task for toy models.

The task is to write the end of a held-out line, since a toy model solves no programming problem.
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
    from codellama_jax.generation.settings import Sampling
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.base import Tokenizer

HELD_BACK = 2  # tokens at the end of a line, which the model must generate
MIN_READ = 2  # tokens of the line that the model reads, at least
NEW_TOKENS = 8  # more than HELD_BACK: the same text may be of more and shorter tokens
SLOTS = 512  # samples generated at the same time
TOP_P = 0.95  # the paper's
KS = (1, 10, 100)  # the k of pass@k


@dataclass(frozen=True)
class LineEnds(Probe, name="line_ends"):
    """The end of each line, sampled many times at each temperature, with the paper's top-p.

    The measures of each temperature are:

    - `passed`: for each line, the number of samples that are exact except for trailing spaces.
    - `samples`: number of samples per line.
    - `pass@k`: for each k up to `samples`.
    """

    temperatures: tuple[Annotated[float, Range(0, 100)], ...]
    lines: Examples = 64
    samples: Examples = 200  # per line; at temperature 0 one, because all would be equal

    def measure(self, subject: Subject) -> dict[str, dict[str, Any]]:
        """Returns the measures by temperature. Raises UserError if there is no line to end."""
        from codellama_jax.benchmarks.pass_at_k import pass_at_k
        from codellama_jax.generation.settings import Sampling

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
    """A line whose end the model must write."""

    prompt: list[int]  # BOS, then the ids of the text before the end
    end: str  # without trailing spaces


def unfinished_lines(
    tokenizer: Tokenizer, texts: Sequence[str], count: int, seq_len: int, seed: int
) -> list[UnfinishedLine]:
    """Returns `count` lines of held-out documents, or fewer if there are not so many.

    They are the same for the same seed.

    Args:
      tokenizer: splits lines into tokens.
      texts: held-out documents.
      count: the number of lines.
      seq_len: the maximum number of tokens of a document.
      seed: the random seed.
    """
    # Twice as many as needed, because some lines are too short.
    limits = (2 * count, seq_len, seq_len, seed)
    lines = []
    for example in held_out_examples(single_lines, tokenizer, texts, *limits):
        beginning = _beginning(tokenizer, example.middle)
        if beginning:
            ids = tokenizer.prompt(example.prefix + beginning)
            end = example.middle[len(beginning) :].rstrip()
            lines.append(UnfinishedLine(ids, end))
    return lines[:count]


def _beginning(tokenizer: Tokenizer, line: str) -> str:
    """Returns a line without its last tokens, or "" for a line that is not suitable.

    A line is not suitable if it is too short, or if its beginning alone has other tokens: the model
    would read a prompt whose continuation it has never seen.
    """
    ids = tokenizer.encode(line, leading_space=False)[:-HELD_BACK]
    text = tokenizer.decode(ids, leading_space=False)
    is_long = len(ids) >= MIN_READ and text.strip()
    has_same_tokens = tokenizer.encode(text, leading_space=False) == ids
    return text if is_long and has_same_tokens else ""


def _joins_newlines(tokenizer: Tokenizer) -> bool:
    """Returns whether a token holds a newline and more, as in byte-level BPE."""
    for i in tokenizer.text_ids:
        text = tokenizer.decode([i], leading_space=False)
        if "\n" in text and text != "\n":
            return True
    return False


def _passed(
    model: TrainedModel, lines: Sequence[UnfinishedLine], sampling: Sampling, samples: int
) -> list[int]:
    """Returns the number of exact samples of each line."""
    from codellama_jax.generation.sampler import generate

    tokenizer = model.tokenizer
    # A line ends at its newline, and the last line of a document at EOS.
    stop_ids = [tokenizer.eos_id, *tokenizer.encode("\n", leading_space=False)]

    def has_ended(_: int, ids: list[int]) -> bool:
        return "\n" in tokenizer.decode(ids, leading_space=False)

    # With SentencePiece a newline is a separate token, and its id is enough to stop at. In
    # byte-level BPE it may be inside of any token, so that the text has to be decoded.
    stop = has_ended if _joins_newlines(tokenizer) else None
    # Every line as often as it is sampled: the engine draws all samples in one stream.
    repeated = [line for line in lines for _ in range(samples)]
    passed: list[bool] = []
    generated = generate(
        model,
        [line.prompt for line in repeated],
        sampling,
        stop_ids,
        stop=stop,
        vocab=tokenizer.pieces,
        slots=SLOTS,
    )
    for ids, line in zip(generated, repeated):
        text = tokenizer.decode(ids, leading_space=False)
        passed.append(text.partition("\n")[0].rstrip() == line.end)
    return np.reshape(passed, (len(lines), samples)).sum(axis=1).tolist()
