"""Perplexity at several context lengths, on the same long documents.

Code Llama, section 3.3.1 and figure 4a. The paper's files had at least 50 kB each and 4M tokens
together.
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
    from codellama_jax.tokenizers.base import Tokenizer

# Endings of the source files that are read.
_C_FAMILY = (".c", ".cc", ".cpp", ".h", ".cs")
KINDS = (".py", ".txt", *_C_FAMILY, ".go", ".java", ".js", ".php", ".rs", ".sh", ".ts")
LARGEST_LOSS = 700.0  # nats per token: exp() of a larger number overflows float64


@dataclass(frozen=True)
class PerplexityOptions(LengthOptions):
    """Options of perplexity."""

    examples: Annotated[int, described("Files that are read, the first that are long enough.")] = 64

    def __post_init__(self):
        super().__post_init__()
        check_integer("--examples", self.examples, 1)


def measure(model: TrainedModel, options: PerplexityOptions) -> dict[str, Any]:
    """Returns a summary like `summary.summarise`, with the perplexities of each length."""
    texts = (text_of(file) for file in files_of(options.data, KINDS))
    by_length = perplexity_by_length(model, texts, options.lengths, options.examples)
    # The same documents are measured at every length.
    files = by_length[min(options.lengths)]["documents"]
    measures = {}
    for length, numbers in by_length.items():
        for name in ("perplexity", "last_block"):
            measures[f"{length:,} {name}"] = numbers[name]
    counts = {"tasks": files, "samples": files}
    return {"benchmark": "perplexity", **counts, "unit": "", "measures": measures}


def perplexity_by_length(
    model: TrainedModel, texts: Iterable[str], lengths: tuple[int, ...], documents: int
) -> dict[int, dict[str, float]]:
    """Returns perplexities of the first texts that have at least max(lengths) tokens.

    Each text is scored once, at the longest length. A dictionary per length holds `perplexity` of
    the first `length` tokens, `last_block` (the perplexity of their last quarter), and the numbers
    of `tokens` and `documents`.

    Args:
        model: scores the texts.
        texts: each is one document.
        lengths: context lengths in tokens.
        documents: how many texts are scored at most.

    Raises UserError naming the length of the longest text if none is long enough.
    """
    # Imported only here, because it imports JAX.
    from codellama_jax.generation.scoring import document_losses

    ids = long_documents(model.tokenizer, texts, max(lengths), documents)
    # [documents, longest length], in nats. Losses of a prefix do not depend on the text after it.
    losses_DT = np.stack(document_losses(model, ids)).astype(np.float64)
    return {length: _measures(losses_DT[:, :length]) for length in sorted(lengths)}


def _measures(losses_DT: np.ndarray) -> dict[str, float]:
    """Returns the perplexities of losses [documents, tokens] in nats."""
    documents, length = losses_DT.shape
    # At the end of the context the model uses the most text; a long-context model improves there.
    last_block = losses_DT[:, -max(1, length // 4) :]
    for loss in (losses_DT.mean(), last_block.mean()):
        # This form is also true for NaN.
        if not loss < LARGEST_LOSS:
            problem = "perplexity is no number: the model has diverged"
            raise UserError(f"the loss is {loss:.3g} nats per token, so that {problem}")
    return {
        "perplexity": math.exp(losses_DT.mean()),
        "last_block": math.exp(last_block.mean()),
        "tokens": documents * length,
        "documents": documents,
    }


def long_documents(
    tokenizer: Tokenizer, texts: Iterable[str], length: int, count: int
) -> list[list[int]]:
    """Returns the first `length + 1` ids, BOS first, of the first `count` texts with as many ids.

    Raises UserError if there is none.
    """
    documents: list[list[int]] = []
    longest = 0
    for text in texts:
        # A text has at most one id per byte (byte fallback), one for the space before it, BOS and
        # EOS. Shorter texts are not encoded, unless they could be the longest one of the message.
        max_ids = len(text.encode()) + 3
        if max_ids <= min(length, longest):
            continue
        ids = plain_ids(tokenizer, text)
        longest = max(longest, len(ids) - 1)
        if len(ids) > length:
            documents.append(ids[: length + 1])
        if len(documents) == count:
            break
    if not documents:
        raise UserError(
            f"no document has the {length:,} tokens of the longest length: the longest document"
            f" has {longest:,}; give shorter lengths or longer files"
        )
    return documents


SUITE = Suite(None, PerplexityOptions, texts=KINDS, measure=measure)
