"""The entry of a benchmark in the registry `suites.SUITES`.

To add a suite, write one file in `suites/` with a function `load` and a `SUITE`, and add one line
to the registry. The file also holds the suite's options, the names of its measures, the checksums
of the published data and the papers' numbers: see docs/extending.md.
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
    from codellama_jax.tokenizers.base import Tokenizer


def record_files(options: Options) -> list[Path]:
    """Returns the local files of records that a benchmark is loaded from."""
    return files_of(options.data, RECORD_FILES)


@dataclass(frozen=True)
class Suite:
    """How a benchmark is loaded, its options, and the identity of its published data.

    Attributes:
        load: returns the benchmark for an instance of `options` and the model's tokenizer.
        options: the class of its options.
        texts: endings of the text files that it reads, for a suite whose loading needs a
            tokenizer, which counts their tokens.
        measure: for a suite without tasks, instead of `load`: returns a summary of a model like
            `summary.summarise`.
        checksums: checksums of the records of the published files, from `comparable.checksum`.
        published_tasks: the number of published tasks, for data without known checksums: files
            with another number are not compared with the papers'; 0 for none.
        published_files: returns the files whose records must have one of these checksums.
    """

    # One of `load` and `measure` is given: a suite either has tasks or measures a model directly.
    load: Callable[[Any, Tokenizer | None], Benchmark] | None
    options: type[Options] = Options
    texts: tuple[str, ...] = ()
    measure: Callable[[TrainedModel, Any], dict[str, Any]] | None = None
    checksums: tuple[str, ...] = ()
    published_tasks: int = 0
    published_files: Callable[[Any], list[Path]] = record_files
