"""Prepares a corpus: reads, filters, removes duplicates and contamination, writes the dataset.

Every stage is a map over numbered parts of the input, so that the text itself is never sent from
one worker to another; only `duplicates` groups short keys of all documents. See docs/data.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from etils import epath

from codellama_jax.checked import Checked, Range
from codellama_jax.config import to_dict
from codellama_jax.data.prepare import counts, dataset
from codellama_jax.data.prepare.contamination.index import BenchmarkText
from codellama_jax.data.prepare.contamination.stage import find_benchmarks
from codellama_jax.data.prepare.documents import WriteDocuments
from codellama_jax.data.prepare.duplicates.stage import find_duplicates
from codellama_jax.data.prepare.inputs import Part, fingerprint_of
from codellama_jax.data.prepare.policies import POLICIES, Policy
from codellama_jax.data.prepare.readers.base import InputOptions
from codellama_jax.data.prepare.records import REASONS
from codellama_jax.data.prepare.runners import Runner
from codellama_jax.data.prepare.stages import MADE, StageFolder, fingerprint, run_stage
from codellama_jax.errors import UserError
from codellama_jax.system.files import read_state
from codellama_jax.system.progress import Say

# Of the stages: another one repeats all of them, as a rule that keeps or redacts other texts needs.
VERSION = 1
WORK = "work"  # the folder of the stages, in that of the corpus


@dataclass(frozen=True)
class PrepareConfig(Checked):
    """Everything but the inputs that decides a prepared corpus."""

    policy: Policy = POLICIES["code_llama"]
    inputs: InputOptions = field(default_factory=InputOptions)
    validation_fraction: Annotated[float, Range(0, 1, open_most=True)] = 0.005
    # What is held out together: repositories, or files where there is only one repository.
    split_by: Literal["repository", "file"] = "repository"
    # Split documents between definitions into blocks of at most this many characters; 0 does not.
    block_characters: Annotated[int, Range(0, 2**31 - 1)] = 0
    shard_bytes: Annotated[int, Range(1, 2**32)] = 64 * 2**20  # of a shard's text


class NothingKeptError(UserError):
    """No document passes the policy."""


@dataclass(frozen=True)
class Result:
    """What was prepared."""

    manifest: dict[str, Any]
    report: dict[str, Any]  # counts of each stage, for the data card
    seconds: dict[str, float]  # by stage; of a stage that was done before nearly 0
    work: dataset.WriteShards  # that wrote the dataset


class Preparation:
    """One corpus that is prepared in a folder, stage by stage.

    Args:
        parts: the parts of the input, numbered from 0.
        config: the policy, the splits and the shards.
        out: the folder of the prepared corpus, local or gs://.
        runner: runs the stages.
        `print_line`: prints a line of progress.
        benchmarks: the texts that `policy.decontamination` looks for.
        tokenizers: functions that return the number of tokens of a text, by the tokenizer's
            fingerprint.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        config: PrepareConfig,
        out: epath.Path,
        runner: Runner,
        print_line: Say,
        benchmarks: Sequence[BenchmarkText] = (),
        tokenizers: dict[str, Callable[[str], int]] | None = None,
    ):
        self.parts = {part.number: part for part in parts}
        self.config, self.out, self.runner, self.print_line = config, out, runner, print_line
        self.benchmarks, self.tokenizers = list(benchmarks), tokenizers or {}
        self.work = out / WORK
        self.seconds: dict[str, float] = {}
        self.report: dict[str, Any] = {}

    def run(self) -> Result:
        """Runs the stages that are not complete, and writes the manifest last."""
        policy = self.config.policy
        with self._timed("documents"):
            documents = self._documents()
        # None is "this stage was not run". Later stages leave it out of their keys too, so that
        # turning a rule on makes other folders instead of reusing those without it.
        copies = marks = None
        if policy.exact_duplicates or policy.near_duplicates.enabled:
            with self._timed("duplicates"):
                copies = self._duplicates(documents)
        if policy.decontamination.enabled and self.benchmarks:
            with self._timed("contamination"):
                marks = self._contamination(documents, copies)
        with self._timed("dataset"):
            manifest, works = self._dataset(documents, copies, marks)
        # Only now it is known which folders the result uses; the others belong to earlier inputs or
        # options.
        self._remove_unused([documents, copies, marks, *(work.stage for work in works)])
        return Result(manifest, self.report, self.seconds, works[-1])

    def _documents(self) -> StageFolder:
        config = self.config
        # Without the rules that compare documents, which may change and leave this stage as it is.
        default = Policy()
        alone = dataclasses.replace(
            config.policy,
            exact_duplicates=default.exact_duplicates,
            decontamination=default.decontamination,
        )
        inputs = fingerprint_of(list(self.parts.values()))
        # The key names the stage's folder. It covers all that decides the documents and nothing
        # else: equal keys reuse the folder, and any other input or rule computes the stage again.
        key = fingerprint(VERSION, inputs, to_dict(alone), to_dict(config.inputs))
        tokenizer = count_tokens = None
        if config.policy.min_fertility:
            if not self.tokenizers:
                raise UserError("--policy.min-fertility counts tokens: pass --tokenizer FILE")
            tokenizer, count_tokens = next(iter(self.tokenizers.items()))
            # Another tokenizer keeps other documents under the same rule.
            key = fingerprint(key, tokenizer)
        stage = StageFolder(self.work, "documents", key)
        work = WriteDocuments(stage, config.policy, config.inputs, count_tokens)
        self.report["documents"] = self._total(stage, self.parts, work)
        return stage

    def _duplicates(self, documents: StageFolder) -> StageFolder:
        policy = self.config.policy
        near, exact = policy.near_duplicates, policy.exact_duplicates
        key = fingerprint(VERSION, documents.key, exact, to_dict(near))
        stage = StageFolder(self.work, "duplicates", key)
        paths = [documents.output(number) for number in self.parts]
        self.report["duplicates"] = find_duplicates(self.runner, paths, near, exact, stage.path)
        return stage

    def _contamination(self, documents: StageFolder, copies: StageFolder | None) -> StageFolder:
        params = self.config.policy.decontamination
        # The texts themselves are in the key: a new version of a benchmark repeats the stage.
        texts = [list(text) for text in self.benchmarks]
        inputs = [stage.key for stage in (documents, copies) if stage]
        key = fingerprint(VERSION, inputs, to_dict(params), texts)
        stage = StageFolder(self.work, "contamination", key)
        self.report["contamination"] = find_benchmarks(
            self.runner,
            stage,
            documents,
            copies,
            list(self.parts),
            self.benchmarks,
            params,
            self.print_line,
        )
        return stage

    def _dataset(
        self, documents: StageFolder, copies: StageFolder | None, marks: StageFolder | None
    ) -> tuple[dict[str, Any], list[dataset.WriteShards]]:
        """Writes the dataset. Returns the manifest and the works, of which the last wrote it."""
        bound = self.config.validation_fraction
        work = self._shard_work(documents, copies, marks, bound)
        works = [work]
        part_counts = self._shards(work)
        # Which side of the bound the documents are on is known only now, because duplicates and
        # contamination are removed in this very stage.
        possible = dataset.validation_bound(part_counts, bound)
        # Rare: so few repositories that one of the splits is empty.
        if possible != bound:
            work = self._shard_work(documents, copies, marks, possible)
            works.append(work)
            part_counts = self._shards(work)
        totals = counts.total(part_counts)
        if not totals.get("kept"):
            left_out = reasons(self.report["documents"], totals)
            raise NothingKeptError(f"no document is kept: {left_out or 'the input holds none'}")
        # The sum keeps the first few items of a list only: these two are read per part above.
        del totals["shards"], totals["positions"]
        self.report["dataset"] = totals
        facts = {
            "block_characters": self.config.block_characters,
            "policy": to_dict(self.config.policy),
            "tokens": totals.get("tokens", {}),
            "counts": self.report,
        }
        return dataset.finish(self.out, work.stage, part_counts, facts), works

    def _shard_work(
        self,
        documents: StageFolder,
        copies: StageFolder | None,
        marks: StageFolder | None,
        bound: float,
    ) -> dataset.WriteShards:
        config = self.config
        inputs = [stage.key for stage in (documents, copies, marks) if stage]
        options: list[Any] = [bound, config.split_by, config.block_characters, config.shard_bytes]
        # Earlier versions held out pieces of a document. Their parts must not be continued, and
        # those of a corpus without contamination are the same.
        if marks:
            options.append("documents with all their pieces")
        # Tokenizers count, because their token counts are part of the output of every part.
        key = fingerprint(VERSION, inputs, options, sorted(self.tokenizers))
        return dataset.WriteShards(
            stage=StageFolder(self.work, "dataset", key),
            documents=documents,
            duplicates=copies,
            contaminated=marks,
            params=config.policy.decontamination,
            by_repository=config.split_by == "repository",
            validation_below=bound,
            block_characters=config.block_characters,
            shard_bytes=config.shard_bytes,
            tokenizers=self.tokenizers,
        )

    def _shards(self, work: dataset.WriteShards) -> list[dict[str, Any]]:
        """Returns what the parts wrote with this bound of the validation split."""
        dataset.discard_missing(self.out, work.stage, list(self.parts))
        numbers = {number: number for number in self.parts}
        return run_stage(self.runner, work.stage, numbers, work, self.print_line)

    def _total(
        self, stage: StageFolder, parts: dict[int, Any], work: Callable[[Any], None]
    ) -> dict[str, Any]:
        """Runs a stage and returns the sum of the counts of its parts."""
        return counts.total(run_stage(self.runner, stage, parts, work, self.print_line))

    def _remove_unused(self, used: Sequence[StageFolder | None]) -> None:
        """Deletes the stages of other inputs or options, whose disk space is needed."""
        names = {stage.path.name for stage in used if stage}
        for folder in self.work.iterdir():
            if MADE.fullmatch(folder.name) and folder.name not in names:
                folder.rmtree(missing_ok=True)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


def is_corpus(out: epath.Path) -> bool:
    """Returns whether a folder holds a corpus that was prepared, or one that is not complete."""
    if "fingerprint" in (read_state(out / dataset.MANIFEST) or {}):
        # A corpus without its stages: they may have been deleted to save space.
        return True
    work = out / WORK
    names = [path.name for path in work.iterdir()] if work.is_dir() else []
    return bool(names) and all(MADE.fullmatch(name) for name in names)


def reasons(*stages: dict[str, Any]) -> str:
    """Returns the number of documents that stages dropped by reason, most first, with an example.

    Takes the counts of each stage. Returns "" if nothing was dropped.
    """
    totals = counts.total(stages)
    dropped = sorted(totals.get("dropped", {}).items(), key=lambda item: -item[1])
    texts = []
    for name, count in dropped:
        first = totals.get("examples", {}).get(name, [""])[0]
        texts.append(f"{count:,} {REASONS[name]}" + (f" (first: {first})" if first else ""))
    return "; ".join(texts)
