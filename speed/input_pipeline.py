"""Tokens a second and core of the input pipeline, infilling and packing included, beside bare SentencePiece on the same corpus.

    PYTHONPATH=. python benchmarks/input_pipeline.py [tokenizer.model]

Both run in turns on one core; processor time counts. The last column is the share of a row that is not padding.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
from rich.console import Console
from rich.table import Table

from codellama_jax.config import CorpusConfig, DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data import builders, pipeline
from codellama_jax.tokenizers import sentencepiece as tokenizers

SHAPES = ((256, 700), (1024, 0), (4096, 0))  # tokens a row, characters a block
TURNS, TURN_TOKENS, ROWS = 8, 600_000, 4


def timed(function: Callable[[], tuple[int, int]]) -> np.ndarray:
    """Returns (tokens, places, seconds) of what `function` made."""
    start = time.process_time()
    return np.array([*function(), time.process_time() - start])


def measure(
    train, tokenizer: tokenizers.Tokenizer, seq_len: int, block_chars: int
) -> tuple[float, float, float]:
    """Returns the pipeline's and bare tokens a second, and the packing efficiency."""
    data = DataConfig(
        seq_len, ROWS, MixtureConfig(code=1.0), InfillingConfig(rate=0.9), block_chars
    )
    rows = pipeline.Rows({"code": train}, data, tokenizer, 0, range(ROWS))
    texts = (
        pipeline.text_of(train[i % len(train)])
        for i in iter(np.random.default_rng(0).permutation(len(train)).tolist() * TURNS)
    )

    def packed() -> tuple[int, int]:
        made = [
            np.count_nonzero(next(rows)["segment_ids"])
            for _ in range(TURN_TOKENS // (seq_len * ROWS))
        ]
        return sum(made), len(made) * seq_len * ROWS

    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)

    def bare(texts: list[str]) -> tuple[int, int]:
        return sum(len(processor.encode(text)) for text in texts), 0

    packed()  # the first rows of all lanes
    ours, theirs = np.zeros(3), np.zeros(3)
    for _ in range(TURNS):
        ours += (turn := timed(packed))
        taken, chars = [], 0
        while chars < 3 * turn[0]:
            taken.append(next(texts))
            chars += len(taken[-1])
        theirs += timed(lambda taken=taken: bare(taken))
    return ours[0] / ours[2], theirs[0] / theirs[2], ours[0] / ours[1]


def main() -> None:
    table = Table(
        "tokens a row", "block", "pipeline, tokens/s", "bare, tokens/s", "ratio", "packed"
    )
    with tempfile.TemporaryDirectory() as cache:
        for seq_len, block_chars in SHAPES:
            prepared = builders.prepare(CorpusConfig(), "code", block_chars, cache)
            if len(sys.argv) > 1:
                tokenizer = tokenizers.load(sys.argv[1])
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
    main()
