"""Runs an experiment: its documents and tokenizer, the stages of each arm, probes, report.

The same command started again resumes it.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from codellama_jax.checkpoints.folder import RunFolder, StageFolder, trained_under
from codellama_jax.checkpoints.identity import identity as identity_of
from codellama_jax.checkpoints.loading import keep_compiled, load_params
from codellama_jax.config import Experiment, Probe, Stage
from codellama_jax.data import generated_keys, pipeline
from codellama_jax.errors import UserError
from codellama_jax.models.trained import TrainedModel
from codellama_jax.probes.run import config_of, kept_answers, run_probes, scheduled
from codellama_jax.probes.subject import Subject
from codellama_jax.report.findings import FindingOf
from codellama_jax.report.report import write_report
from codellama_jax.runs import data_stages
from codellama_jax.runs.corpus import (
    Corpus,
    batches_of,
    check_prepared,
    check_same_tokenizer,
    check_tokenizer,
    held_out,
)
from codellama_jax.runs.folder import check_folder, opened_folder
from codellama_jax.runs.stages import ResolvedStage, resolve
from codellama_jax.sharding import peers
from codellama_jax.sharding.hosts import on_first_host, say, start_distributed
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.system import locks
from codellama_jax.system.allocator import keep_freed_memory
from codellama_jax.system.files import read_state, user_path, write_json
from codellama_jax.training.loop import (
    StageRun,
    Stopped,
    owned_rows,
    place_validation,
    train_stage,
)

if TYPE_CHECKING:
    from codellama_jax.runs.commands import RunOptions


def stage_identity(corpus: Corpus, stage: ResolvedStage, before: str) -> str:
    """Returns the identity of a stage that follows the one of identity `before`.

    The identity of a finished stage is in its folder, so that its documents need not be read.
    """
    recorded = stage.folder.trained().identity() if stage.folder.is_trained() else ""
    if recorded:
        return recorded
    sources = corpus.sources(stage.stage)
    documents = {name: prepared.fingerprint for name, prepared in sources.items()}
    shared: list[Any] = [documents, corpus.tokenizer.fingerprint]
    if origin := stage.stage.init.partition(":")[2]:
        shared.append(str(user_path(origin)))  # a relative path depends on the current folder
    return identity_of(stage.stage, before, stage.seed, shared)


def train(corpus: Corpus, resolved: ResolvedStage) -> None:
    """Trains one stage."""
    stage, mesh = resolved.stage, resolved.mesh
    rows = owned_rows(mesh, stage.data.batch_size)
    validation = place_validation(held_out(corpus, stage), stage, mesh)
    batches = batches_of(corpus, stage, resolved.seed, rows)
    run = StageRun(str(resolved), stage, resolved.folder, mesh, batches, rows, validation)
    train_stage(run, resolved.initial, resolved.seed)


def batches_trained_on(corpus: Corpus, last: ResolvedStage) -> Iterator[pipeline.Batch]:
    """Yields the training batches of an arm's stages up to `last`, in their order."""
    for part in last.chain:
        # All sequences of the batch, whichever host trained on them.
        lanes = range(part.stage.data.batch_size)
        with batches_of(corpus, part.stage, part.seed, lanes) as batches:
            yield from itertools.islice(batches, part.stage.steps)


def probe_stage(
    experiment: Experiment, corpus: Corpus, stage: ResolvedStage, trained: StageFolder
) -> None:
    """Runs the experiment's probes on a trained stage and writes their answers.

    Answers of a probe with the same options that are already written, here or at `trained`, are
    kept.

    Args:
      experiment: the experiment.
      corpus: its documents and tokenizer.
      stage: the stage.
      trained: the folder where it was trained: its own, or that of an equal stage.
    """
    chain = experiment.arms[stage.arm]
    # Probes of all stages read documents of the first one's length, so that they are comparable.
    first = next(iter(chain.values()))
    is_last = stage.index == len(chain) - 1
    by_step = scheduled(experiment.probes, stage.stage, is_last)
    probes: dict[str, Probe] = {}
    for at_step in by_step.values():
        probes |= at_step
    if experiment.probes and not probes:
        return
    # Answers to other documents are not kept: they would be compared with these.
    documents: list[Any] = [first.data.block_chars, first.data.seq_len, experiment.seed]
    if experiment.corpus.held_out:
        documents.append(experiment.corpus.held_out)
    answers: dict[str, Any] = {}
    for path in (trained.probes, stage.folder.probes):
        answers |= kept_answers(read_state(path), probes, documents)
    for step, at_step in by_step.items():
        missing = {name: probe for name, probe in at_step.items() if name not in answers}
        if missing:
            answers |= measure(missing, corpus, stage, trained, first, experiment.seed, step)
    # Every host has measured the same answers; one writes them.
    if jax.process_index() == 0:
        in_order = {name: answers[name] for name in probes}  # that of the report's sections
        write_json(stage.folder.probes, {"config": config_of(probes, documents), **in_order})


def probed_source(paths: Mapping[str, str], stage: Stage) -> str:
    """Returns the source whose held-out documents the probes read: the one of the largest share.

    Documents with keys do not count: as filler of key retrieval they would hide further keys.

    Args:
      paths: those of all sources, by name.
      stage: the stage.
    """
    every = {name: share for name, share in stage.data.mixture.shares().items() if share}
    shares = {}
    for name, share in every.items():
        if paths[name] not in generated_keys.CORPORA:
            shares[name] = share
    shares = shares or every  # a stage of nothing else
    return max(shares, key=shares.__getitem__)


def measure(
    probes: dict[str, Probe],
    corpus: Corpus,
    resolved: ResolvedStage,
    trained: StageFolder,
    first: Stage,
    seed: int,
    step: int | None = None,
) -> dict[str, Any]:
    """Returns the measures of probes after a trained stage, by the name of the probe.

    Args:
      probes: the probes to run, by name.
      corpus: the documents and the tokenizer of the experiment.
      resolved: the stage.
      trained: the folder where it was trained.
      first: the first stage of the arm, whose documents and sequence length all stages share.
      seed: of the experiment.
      step: of an earlier checkpoint; None takes the last one.
    """
    stage, name = resolved.stage, f"{resolved} at step {step}" if step else str(resolved)
    try:
        params = load_params(trained, stage.model, resolved.mesh, step)
    except UserError as error:
        if step is None:
            raise
        # An equal stage of an older run may have kept other checkpoints.
        return {name: {"note": str(error)} for name in probes}
    model = TrainedModel(stage.model, params, corpus.tokenizer, name)
    source = probed_source(corpus.experiment.corpus.paths(), stage)
    has_tags = stage.data.language_tags
    subject = Subject(
        model,
        # Long contexts need unsplit files; the others read documents as in training.
        files=corpus.held_out_texts(source, 0, has_tags),
        documents=corpus.held_out_texts(source, first.data.block_chars, has_tags),
        training_rows=lambda: batches_trained_on(corpus, resolved),
        validation_rows=held_out(corpus, stage),
        seq_len=first.data.seq_len,
        seed=seed,
    )
    return run_probes(probes, subject, say)


def run_experiment(
    experiment: Experiment, claim: str, finding: FindingOf | None, choice: RunOptions
) -> None:
    """Runs the arms (or the one that `choice` names), writes their probes and the report.

    Exits with 128 + signal after a stop that saved, and with `peers.PEER_DIED` after the death of
    another host.

    Args:
      experiment: the arms, their corpus and tokenizer.
      claim: the docstring of the experiment's file, for the report.
      finding: the function that compares the arms, if the file has one.
      choice: the options of the verb `run`.
    """
    started = time.monotonic()
    keep_freed_memory()
    start_distributed()
    keep_compiled(choice.cache)
    folder = RunFolder(user_path(choice.out or f"runs/{experiment.name}-{experiment.scale}"))
    # Mistakes are reported in the order in which they can be found: before documents are prepared,
    # and before anything is written.
    on_first_host(lambda: locks.check_free(folder.path))
    mesh = make_mesh(experiment.mesh)
    arms = {choice.arm: experiment.arms[choice.arm]} if choice.arm else experiment.arms
    stages = resolve(experiment, arms, folder, mesh)
    # With --fresh nothing that is here counts.
    to_train = [s for s in stages if choice.fresh or not s.folder.is_trained()]
    for stage in to_train:
        stage.check()
        for data in stage.data:
            data_stages.check(data)
    # Also checked once more with the lock held, when another process may have been faster.
    if not choice.fresh:
        check_folder(experiment, folder)
    corpora = check_prepared(experiment, to_train, folder.corpora, choice.fresh)
    corpus = Corpus(experiment, choice.cache)
    check_tokenizer(experiment, corpus.tokenizer)
    check_same_tokenizer(experiment, corpus.tokenizer, [s.stage for s in to_train])
    with opened_folder(experiment, folder, choice.fresh):
        if corpora and jax.process_index() == 0:
            write_json(folder.corpora, corpora)
        try:
            with on_mesh(mesh), peers.ending_with_peers():
                run_stages(experiment, corpus, folder, stages, choice.reuse)
        except Stopped as stop:
            name = signal.Signals(stop.args[0]).name
            text = f"stopped by {name} and saved: run the same command again to continue"
            # As a shell reports it, so that a job queue sees that the run was stopped.
            print(text, file=sys.stderr)
            sys.exit(128 + stop.args[0])
        if jax.process_index() == 0:
            corpus.save_counts(folder.corpus)
            say("writing the report")
            write_report(folder.path, experiment, claim, finding, time.monotonic() - started)
            say(f"report: {folder.report_html}")


def run_stages(
    experiment: Experiment,
    corpus: Corpus,
    folder: RunFolder,
    stages: Sequence[ResolvedStage],
    under: str,
) -> None:
    """Trains and probes the stages that have not finished.

    A stage that equals an earlier one, or one of a run in the folder `under`, is read from there.

    Args:
      experiment: the experiment.
      corpus: its documents and tokenizer.
      folder: the run's folder.
      stages: in the order in which they run.
      under: a folder of other runs; "" for none.
    """
    is_first = jax.process_index() == 0
    if is_first:
        folder.save_tokenizer(corpus.tokenizer)
    # Grows as stages finish: arms of this experiment share equal stages too.
    trained = trained_under(user_path(under)) if under else {}
    identity = ""
    everything = corpus
    for stage in stages:
        here = stage.folder
        for data in stage.data:
            data_stages.write(data, corpus.tokenizer, trained)
        corpus = data_stages.with_data(everything, stage)
        identity = stage_identity(corpus, stage, identity if stage.before else "")
        if here.is_trained():
            trained_in = here.trained()
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
