"""The entry of a benchmark in the registry `suites.SUITES`.

To add a suite, write one file in `suites/` with a function `load` and a `SUITE`, and add a line to
the registry. Options, the name of each measure, published checksums and papers' numbers are in that
file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codellama_jax.benchmarks.benchmark import RECORD_FILES, Benchmark, files_of
from codellama_jax.benchmarks.settings import Options

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.sentencepiece import Tokenizer


def record_files(options: Options) -> list[Path]:
    """Returns the local files of records that a benchmark is loaded from."""
    return files_of(options.data, RECORD_FILES)


@dataclass(frozen=True)
class Suite:
    """How a benchmark is loaded, with which options, and what its published data is."""

    # Returns the benchmark, with the measures that its checks and its `judge` give.
    load: Callable[[Any, Tokenizer | None], Benchmark] | None
    options: type[Options] = Options
    # Endings of the text files it reads, for a suite that needs a model: a tokenizer counts their
    # tokens.
    texts: tuple[str, ...] = ()
    # Replaces `load` where there are no tasks to answer: returns a summary as `summarise` does.
    measure: Callable[[TrainedModel, Any], dict[str, Any]] | None = None
    # Checksums of the records of the published files, as `comparable.checksum` computes them.
    checksums: tuple[str, ...] = ()
    # The files whose records must have one of these checksums.
    published_files: Callable[[Any], list[Path]] = record_files
