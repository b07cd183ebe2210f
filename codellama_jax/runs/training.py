"""The stages of a run, trained and probed one after another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax

from codellama_jax.checkpoints.folder import RunFolder, trained_under
from codellama_jax.checkpoints.identity import identity as identity_of
from codellama_jax.config import Experiment
from codellama_jax.runs import data_stages
from codellama_jax.runs.corpus import Corpus, batches_of, held_out
from codellama_jax.runs.probing import probe_stage
from codellama_jax.runs.stages import ResolvedStage
from codellama_jax.sharding.hosts import say
from codellama_jax.system import locks
from codellama_jax.system.files import user_path
from codellama_jax.training.loop import StageRun, owned_rows, place_validation, train_stage
from codellama_jax.weights import load

WAIT_SECONDS = 0.5  # between two looks for a stage that no other process has claimed


def stage_identity(corpus: Corpus, stage: ResolvedStage, before: str) -> str:
    """Returns the identity of a stage that follows the one of identity `before`.

    That of a finished stage is in its folder, so that its documents need not be read. So is that of
    a stage to resume, which keeps it: processes that look before and after its end see the same.
    """
    folder = stage.folder
    if folder.is_trained():
        recorded = folder.trained().identity()
    else:
        recorded = folder.resumed_identity()
    if recorded:
        return recorded
    # Prepares the documents, whose fingerprints count: the same paths may hold other files today.
    sources = corpus.sources(stage.stage)
    documents = {name: prepared.fingerprint for name, prepared in sources.items()}
    shared: list[Any] = [documents, corpus.tokenizer.fingerprint]
    if origin := stage.stage.init.partition(":")[2]:
        shared.append(str(user_path(origin)))  # a relative path depends on the current folder
    # Only where there is one: the identities of stages that start otherwise stay as they are.
    if run_identity := load.run_identity(stage.stage.init):
        shared.append(run_identity)
    return identity_of(stage.stage, before, stage.seed, shared)


def train(corpus: Corpus, resolved: ResolvedStage) -> None:
    """Trains one stage."""
    stage, mesh = resolved.stage, resolved.mesh
    rows = owned_rows(mesh, stage.data.batch_size)
    validation = place_validation(held_out(corpus, stage), stage, mesh)
    batches = batches_of(corpus, stage, resolved.seed, rows)
    run = StageRun(str(resolved), stage, resolved.folder, mesh, batches, rows, validation)
    train_stage(run, resolved.initial, resolved.seed)


class Training:
    """Trains and probes the stages of a run, each of those that are equal once.

    A stage that equals an earlier one, or one of the runs in `other_runs`, is read from there.

    Args:
      experiment: the experiment.
      corpus: its documents and tokenizer.
      folder: the run's folder.
      other_runs: their folder, of the option `--reuse`; "" for none.
    """

    def __init__(
        self, experiment: Experiment, corpus: Corpus, folder: RunFolder, other_runs: str
    ) -> None:
        self.experiment, self.folder = experiment, folder
        self._corpus = corpus
        self._is_first = jax.process_index() == 0
        if self._is_first:
            folder.save_tokenizer(corpus.tokenizer)
        # Grows as stages finish: arms of this experiment share equal stages too.
        self._trained = trained_under(user_path(other_runs)) if other_runs else {}
        self._prepared_stages: dict[ResolvedStage, tuple[Corpus, str]] = {}

    def _prepared(self, stage: ResolvedStage) -> tuple[Corpus, str]:
        """Returns the corpus of a stage and its identity; `run` has trained the one before it."""
        if stage not in self._prepared_stages:
            for data in stage.data:
                # Written just before the stage that reads them, by models that are trained by now.
                data_stages.write(data, self._corpus.tokenizer, self._trained)
            corpus = data_stages.with_data(self._corpus, stage)
            # A chain of hashes: stages that start from the one before are equal only if those are
            # equal too.
            before = self._prepared_stages[stage.before][1] if stage.before else ""
            self._prepared_stages[stage] = corpus, stage_identity(corpus, stage, before)
        return self._prepared_stages[stage]

    def run(self, stage: ResolvedStage) -> None:
        """Trains and probes a stage that has not finished, after the one before it."""
        here = stage.folder
        corpus, identity = self._prepared(stage)
        if here.is_trained():
            trained_in = here.trained()
            # All hosts share the folder, and one writes to it.
            if self._is_first:
                here.repair_config(stage.stage)
            say(f"{stage}: done before, skipped")
        elif identity in self._trained:
            trained_in = self._trained[identity]
            say(f"{stage}: equal to {trained_in}, read from there")
            if self._is_first:
                here.point_to(trained_in, stage.stage)
        else:
            trained_in = here
            if self._is_first:
                here.begin(stage.stage, identity)
            train(corpus, stage)
        # A folder of an older version may have no identity, or one that was computed otherwise.
        if trained_in.identity() == identity:
            self._trained[identity] = trained_in
        probe_stage(self.experiment, corpus, stage, trained_in)
        # Now, since a resume does not read the documents of this stage again.
        self._save_counts()

    def _save_counts(self) -> None:
        """Adds the documents that this process has read so far to the run's counts."""
        if self._is_first:
            # Other processes of the run add theirs to the same file.
            with locks.one_after_another(self.folder.corpus, say):
                self._corpus.save_counts(self.folder.corpus)

    def run_unclaimed(self, stages: Sequence[ResolvedStage]) -> None:
        """Runs stages beside other processes of the same run, which have the same stages.

        A stage is claimed by its identity, so that none of several equal ones is trained twice.

        Args:
          stages: in the order in which this process prefers them.
        """
        waiting = list(stages)
        while waiting:
            stage = self._next(waiting)
            if stage:
                waiting.remove(stage)
            else:
                # All that remain are trained by others, or follow such a stage.
                time.sleep(WAIT_SECONDS)

    def _next(self, waiting: Sequence[ResolvedStage]) -> ResolvedStage | None:
        """Runs the first stage that is ready and not claimed, and returns it; None without one."""
        for stage in waiting:
            if stage.before in waiting:
                continue
            _, identity = self._prepared(stage)
            with locks.claimed(self.folder.claim(identity)) as is_ours:
                if is_ours:
                    # Those that other processes have trained since.
                    self._trained.update(self.folder.trained_stages())
                    self.run(stage)
                    return stage
        return None


def run_stages(
    experiment: Experiment,
    corpus: Corpus,
    folder: RunFolder,
    stages: Sequence[ResolvedStage],
    other_runs: str,
) -> None:
    """Trains and probes the stages that have not finished, in this order.

    Args:
      experiment: the experiment.
      corpus: its documents and tokenizer.
      folder: the run's folder.
      stages: in the order in which they run.
      other_runs: their folder, of the option `--reuse`; "" for none.
    """
    training = Training(experiment, corpus, folder, other_runs)
    for stage in stages:
        training.run(stage)
