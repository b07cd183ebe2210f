"""Perplexity by context length on the same long documents.

Code Llama, section 3.3.1 and figure 4a; the paper's files were at least 50 kB, 4M tokens together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from codellama_jax.benchmarks.benchmark import files_of, text_of
from codellama_jax.benchmarks.settings import LengthOptions, check_integer, described
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.data.infilling import plain_ids
from codellama_jax.errors import UserError

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.sentencepiece import Tokenizer

KINDS = (
    ".py",
    ".txt",
    ".c",
    ".cc",
    ".cpp",
    ".h",
    ".cs",
    ".go",
    ".java",
    ".js",
    ".php",
    ".rs",
    ".sh",
    ".ts",
)
LARGEST_LOSS = 700.0  # nats per token: exp() of more is no float64


@dataclass(frozen=True)
class PerplexityOptions(LengthOptions):
    """Options of perplexity."""

    examples: Annotated[int, described("Files that are read, the first that are long enough.")] = 64

    def __post_init__(self):
        super().__post_init__()
        check_integer("--examples", self.examples, 1)


def measure(model: TrainedModel, options: PerplexityOptions) -> dict[str, Any]:
    """Returns a summary of the perplexities of the first files that have the longest length."""
    texts = (text_of(file) for file in files_of(options.data, KINDS))
    by_length = perplexity_by_length(model, texts, options.lengths, options.examples)
    files = next(iter(by_length.values()))["documents"]
    measures = {}
    for length, measured in by_length.items():
        for name in ("perplexity", "last_block"):
            measures[f"{length:,} {name}"] = measured[name]
    counts = {"tasks": files, "samples": files}
    return {"benchmark": "perplexity", **counts, "unit": "", "measures": measures}


def perplexity_by_length(
    model: TrainedModel, texts: Iterable[str], lengths: tuple[int, ...], rows: int
) -> dict[int, dict[str, float]]:
    """Reads the first `rows` texts of at least max(lengths) tokens, each as one document.

    Each is read once, at the longest length. For each length: `perplexity` of the first `length`
    tokens, `last_block`, that of the last quarter of them, `tokens` and `documents` read. Raises
    UserError naming the longest text if none is long enough.
    """
    from codellama_jax.generation.scoring import document_losses

    documents = long_documents(model.tokenizer, texts, max(lengths), rows)
    losses_RT = np.stack(document_losses(model, documents)).astype(np.float64)
    return {length: _measures(losses_RT[:, :length]) for length in sorted(lengths)}


def _measures(losses_RT: np.ndarray) -> dict[str, float]:
    rows, length = losses_RT.shape
    last_block = losses_RT[:, -max(1, length // 4) :]
    for loss in (losses_RT.mean(), last_block.mean()):
        if not loss < LARGEST_LOSS:
            problem = "perplexity is no number: the model has diverged"
            raise UserError(f"the loss is {loss:.3g} nats per token, so that {problem}")
    return {
        "perplexity": math.exp(losses_RT.mean()),
        "last_block": math.exp(last_block.mean()),
        "tokens": rows * length,
        "documents": rows,
    }


def long_documents(
    tokenizer: Tokenizer, texts: Iterable[str], length: int, rows: int
) -> list[list[int]]:
    """Returns the first `length + 1` ids, BOS first, of the first `rows` texts that have as many.

    Raises UserError if there is none.
    """
    found: list[list[int]] = []
    longest = 0
    for text in texts:
        # Byte fallback: one id per byte, the space before any text, BOS and EOS.
        most = len(text.encode()) + 3
        if most <= min(length, longest):
            continue
        ids = plain_ids(tokenizer, text)
        longest = max(longest, len(ids) - 1)
        if len(ids) > length:
            found.append(ids[: length + 1])
        if len(found) == rows:
            break
    if not found:
        raise UserError(
            f"no document has the {length:,} tokens of the longest length: the longest document"
            f" has {longest:,}; give shorter lengths or longer files"
        )
    return found


SUITE = Suite(None, PerplexityOptions, texts=KINDS, measure=measure)
