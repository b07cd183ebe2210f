"""Tokens per second and core of the input pipeline, beside bare SentencePiece on the same corpus.

    PYTHONPATH=. python speed/input_pipeline.py [tokenizer.model]

The pipeline includes infilling and packing. Both sides run alternately on one core, and processor
time counts. The last column is the fraction of a sequence that is not padding.
"""

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
from rich.console import Console
from rich.table import Table

from codellama_jax.command_line import run_command
from codellama_jax.config import CorpusConfig, DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data import builders, pipeline
from codellama_jax.errors import UserError
from codellama_jax.tokenizers import files
from codellama_jax.tokenizers import sentencepiece as tokenizers

SHAPES = ((256, 700), (1024, 0), (4096, 0))  # tokens per sequence, characters per block
TURNS = 8  # measurements of each side, alternately
TURN_TOKENS = 600_000  # positions that the pipeline fills in each of them
ROWS = 4  # sequences that are packed at once


def timed(function: Callable[[], tuple[int, int]]) -> np.ndarray:
    """Returns (tokens, positions, seconds): the result of `function`, and its processor time."""
    start = time.process_time()
    return np.array([*function(), time.process_time() - start])


def sentencepiece_tokenizer(path: str) -> tokenizers.SentencePieceTokenizer:
    """Reads a tokenizer.model. Raises UserError for a file of another kind."""
    tokenizer = files.load(path)
    if not isinstance(tokenizer, tokenizers.SentencePieceTokenizer):
        raise UserError(
            f"{path}: is not a SentencePiece model, with which this script compares: give a"
            " tokenizer.model, or nothing to train one on the corpus"
        )
    return tokenizer


def measure(
    train, tokenizer: tokenizers.SentencePieceTokenizer, seq_len: int, block_chars: int
) -> tuple[float, float, float]:
    """Measures both sides on one corpus.

    Args:
      train: the documents.
      tokenizer: the tokenizer of both sides.
      seq_len: tokens per sequence.
      block_chars: characters per block of a document; 0 does not split documents.

    Returns:
      Tokens per second of the pipeline and of bare SentencePiece, and the packing efficiency.
    """
    data = DataConfig(
        seq_len, ROWS, MixtureConfig(code=1.0), InfillingConfig(rate=0.9), block_chars
    )
    # Without the thread that prefetches batches: processor time of one core is measured.
    rows = pipeline.DirectBatches({"code": train}, data, tokenizer, 0, range(ROWS))
    order = np.random.default_rng(0).permutation(len(train)).tolist() * TURNS
    texts = (pipeline.text_of(train[index]) for index in order)

    def packed() -> tuple[int, int]:
        """Returns the tokens and the positions of a number of batches."""
        batches = TURN_TOKENS // (seq_len * ROWS)
        # Segment 0 is padding, which is work of ours but no token.
        tokens = sum(int(np.count_nonzero(next(rows)["segment_ids"])) for _ in range(batches))
        return tokens, batches * seq_len * ROWS

    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)

    def bare(texts: list[str]) -> tuple[int, int]:
        """Returns the tokens of texts, and no positions."""
        return sum(len(processor.encode(text)) for text in texts), 0

    packed()  # fills the packing bins, which a long run does only once
    # Sums of tokens, positions and seconds over all turns.
    ours, theirs = np.zeros(3), np.zeros(3)
    for _ in range(TURNS):
        turn = timed(packed)
        ours += turn
        # A token is about three characters: the peer gets about as many tokens.
        taken: list[str] = []
        chars = 0
        while chars < 3 * turn[0]:
            taken.append(next(texts))
            chars += len(taken[-1])
        theirs += timed(functools.partial(bare, taken))
    return ours[0] / ours[2], theirs[0] / theirs[2], ours[0] / ours[1]


def main() -> None:
    """Prints a table with a row per shape."""
    table = Table(
        "tokens per sequence", "block", "pipeline, tokens/s", "bare, tokens/s", "ratio", "packed"
    )
    with tempfile.TemporaryDirectory() as cache:
        for seq_len, block_chars in SHAPES:
            prepared = builders.prepare(CorpusConfig(), "code", block_chars, cache)
            if len(sys.argv) > 1:
                tokenizer = sentencepiece_tokenizer(sys.argv[1])
            else:
                tokenizer = tokenizers.train(
                    map(pipeline.text_of, prepared.train), 4096, Path(cache)
                )
            ours, bare, share = measure(prepared.train, tokenizer, seq_len, block_chars)
            table.add_row(
                f"{seq_len:,}",
                f"{block_chars or 'file'}",
                f"{ours:,.0f}",
                f"{bare:,.0f}",
                f"{ours / bare:.2f}",
                f"{share:.3f}",
            )
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
