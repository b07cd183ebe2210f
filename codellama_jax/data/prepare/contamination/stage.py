"""Stage 3: finds benchmarks in all parts of the documents, on the runner's workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from codellama_jax.data.prepare.contamination import part_files as parts
from codellama_jax.data.prepare.contamination.index import BenchmarkText, Decontamination
from codellama_jax.data.prepare.runners import Runner
from codellama_jax.data.prepare.stages import StageFolder, run_stage
from codellama_jax.system.progress import Say

INDEX = "benchmarks.json"
COMMON = "common.parquet"


@dataclass(frozen=True)
class PartWork:
    """Counts the n-grams of a part or, once the common ones are known, finds its matches."""

    stage: StageFolder
    documents: StageFolder
    duplicates: StageFolder | None
    index: str
    common: str
    is_count: bool

    def __call__(self, number: int) -> None:
        """Writes the output of one part."""
        dropped = ""
        if self.duplicates and self.duplicates.output(number).exists():
            dropped = str(self.duplicates.output(number))
        documents, output = self.documents.output(number), self.stage.output(number)
        if self.is_count:
            parts.count_grams(documents, self.index, output, dropped)
        else:
            parts.scan_part(documents, self.index, self.common, output, dropped)
        self.stage.finish(number, {})


def find_benchmarks(
    runner: Runner,
    stage: StageFolder,
    documents: StageFolder,
    duplicates: StageFolder | None,
    numbers: Sequence[int],
    texts: Sequence[BenchmarkText],
    params: Decontamination,
    print_line: Say,
) -> dict[str, Any]:
    """Writes the matches of every part, and returns their counts for the data card.

    Args:
        runner: runs the work on the parts.
        stage: the folder to write.
        documents: the folder with the documents.
        duplicates: the folder that lists those which are dropped already; None for none.
        numbers: the parts.
        texts: the texts of the benchmarks.
        params: the rules.
        `print_line`: prints a line of progress.
    """
    index, common = stage.path / INDEX, ""
    # The folder's name holds a hash of the texts and rules, so that an existing index is this one.
    if not index.exists():
        parts.write_index(index, texts, params)
    todo = {number: number for number in numbers}
    if params.ngrams:
        # The first of two passes: n-grams that many documents hold are no sign of a benchmark.
        grams = StageFolder(stage.path, "grams", stage.key)
        common = str(stage.path / COMMON)
        run_stage(
            runner,
            grams,
            todo,
            PartWork(grams, documents, duplicates, str(index), "", is_count=True),
            print_line,
        )
        if not (stage.path / COMMON).exists():
            parts.common_grams([grams.output(number) for number in numbers], params, common)
    run_stage(
        runner,
        stage,
        todo,
        PartWork(stage, documents, duplicates, str(index), common, is_count=False),
        print_line,
    )
    paths = [stage.output(number) for number in numbers]
    rules = [rule._asdict() for rule in parts.rule_counts(paths)]
    result: dict[str, Any] = {"rules": rules}
    if params.tokens:
        shares = parts.token_shares(paths, parts.load_index(index))
        result["tokens"] = [share._asdict() for share in shares]
    return result
