"""The stages of a run, trained and probed one after another."""

from __future__ import annotations

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
from codellama_jax.system.files import user_path
from codellama_jax.training.loop import StageRun, owned_rows, place_validation, train_stage
from codellama_jax.weights import load


def stage_identity(corpus: Corpus, stage: ResolvedStage, before: str) -> str:
    """Returns the identity of a stage that follows the one of identity `before`.

    The identity of a finished stage is in its folder, so that its documents need not be read.
    """
    recorded = stage.folder.trained().identity() if stage.folder.is_trained() else ""
    if recorded:
        return recorded
    # Prepares the documents, whose fingerprints count: the same paths may hold other files today.
    sources = corpus.sources(stage.stage)
    documents = {name: prepared.fingerprint for name, prepared in sources.items()}
    shared: list[Any] = [documents, corpus.tokenizer.fingerprint]
    if origin := stage.stage.init.partition(":")[2]:
        shared.append(str(user_path(origin)))  # a relative path depends on the current folder
    # Only where there is one: the identities of stages that start otherwise stay as they are.
    if first := load.run_identity(stage.stage.init):
        shared.append(first)
    return identity_of(stage.stage, before, stage.seed, shared)


def train(corpus: Corpus, resolved: ResolvedStage) -> None:
    """Trains one stage."""
    stage, mesh = resolved.stage, resolved.mesh
    rows = owned_rows(mesh, stage.data.batch_size)
    validation = place_validation(held_out(corpus, stage), stage, mesh)
    batches = batches_of(corpus, stage, resolved.seed, rows)
    run = StageRun(str(resolved), stage, resolved.folder, mesh, batches, rows, validation)
    train_stage(run, resolved.initial, resolved.seed)


def run_stages(
    experiment: Experiment,
    corpus: Corpus,
    folder: RunFolder,
    stages: Sequence[ResolvedStage],
    other_runs: str,
) -> None:
    """Trains and probes the stages that have not finished.

    A stage that equals an earlier one, or one of the runs in `other_runs`, is read from there.

    Args:
      experiment: the experiment.
      corpus: its documents and tokenizer.
      folder: the run's folder.
      stages: in the order in which they run.
      other_runs: their folder, of the option `--reuse`; "" for none.
    """
    is_first = jax.process_index() == 0
    if is_first:
        folder.save_tokenizer(corpus.tokenizer)
    # Grows as stages finish: arms of this experiment share equal stages too.
    trained = trained_under(user_path(other_runs)) if other_runs else {}
    identity = ""
    everything = corpus
    for stage in stages:
        here = stage.folder
        for data in stage.data:
            # Written just before the stage that reads them, by models that are trained by now.
            data_stages.write(data, corpus.tokenizer, trained)
        corpus = data_stages.with_data(everything, stage)
        # A chain of hashes: stages that start from the one before are equal only if those are equal
        # too.
        identity = stage_identity(corpus, stage, identity if stage.before else "")
        if here.is_trained():
            trained_in = here.trained()
            # All hosts share the folder, and one writes to it.
            if is_first:
                here.repair_config(stage.stage)
            say(f"{stage}: done before, skipped")
        elif identity in trained:
            trained_in = trained[identity]
            say(f"{stage}: equal to {trained_in}, read from there")
            if is_first:
                here.point_to(trained_in, stage.stage)
        else:
            trained_in = here
            if is_first:
                here.begin(stage.stage, identity)
            train(corpus, stage)
        # A folder of an older version may have no identity, or one that was computed otherwise.
        if trained_in.identity() == identity:
            trained[identity] = trained_in
        probe_stage(experiment, corpus, stage, trained_in)
