"""Runs an experiment: corpus and tokenizer, the stages of each arm, probes, report.

The same command started again resumes it.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, StageFolder, trained_under
from codellama_jax.checkpoints.identity import identity as identity_of
from codellama_jax.checkpoints.loading import keep_compiled, load_params
from codellama_jax.config import Experiment, Probe, Stage, to_dict
from codellama_jax.data import builders, pipeline
from codellama_jax.errors import UserError
from codellama_jax.models.trained import TrainedModel
from codellama_jax.probes.run import config_of, kept_answers, run_probes
from codellama_jax.probes.subject import Subject
from codellama_jax.report.findings import FindingOf
from codellama_jax.report.report import write_report
from codellama_jax.runs.folder import check_folder, opened_folder
from codellama_jax.runs.stages import ResolvedStage, resolve
from codellama_jax.sharding import peers
from codellama_jax.sharding.hosts import on_first_host, say, start_distributed
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.system import locks
from codellama_jax.system.files import read_state, user_path, write_json
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.training.loop import (
    StageRun,
    Stopped,
    owned_rows,
    place_validation,
    train_stage,
)
from codellama_jax.weights import load


class Corpus:
    """Prepared documents by source and block size, each prepared once; and the tokenizer."""

    def __init__(self, experiment: Experiment, cache: str):
        self.experiment, self.cache = experiment, cache
        self.prepared: dict[tuple[str, int], builders.Prepared] = {}
        self.tokenizer = self._tokenizer()

    def source(self, name: str, block_chars: int) -> builders.Prepared:
        key = (name, block_chars)
        if key not in self.prepared:
            corpus = self.experiment.corpus
            self.prepared[key] = builders.prepare(corpus, name, block_chars, self.cache, say)
        return self.prepared[key]

    def sources(self, stage: Stage) -> dict[str, builders.Prepared]:
        """Returns the sources that a stage's mixture names."""
        shares = to_dict(stage.data.mixture)
        return {
            name: self.source(name, stage.data.block_chars)
            for name, share in shares.items()
            if share
        }

    def save_counts(self, path: epath.Path) -> None:
        """Writes how many files and documents each source has, to a file for the report.

        A run that goes on may prepare fewer sources than the one before: those in the file stay.
        """
        counts = read_state(path) or {}
        for (name, block), prepared in self.prepared.items():
            key = f"{name}, blocks of {block} characters" if block else name
            counts[key] = prepared.counts
        write_json(path, counts)

    def _tokenizer(self) -> tokenizers.Tokenizer:
        config = self.experiment.tokenizer
        if config.path:
            return tokenizers.load(user_path(config.path))
        first = next(iter(next(iter(self.experiment.arms.values())).values()))
        texts = (
            pipeline.text_of(document)
            for prepared in self.sources(first).values()
            for document in prepared.train
        )
        return tokenizers.train(texts, config.pieces, user_path(self.cache), say)


def check_tokenizer(experiment: Experiment, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises UserError where a stage's vocabulary is not the tokenizer's; prints its limits."""
    for limit in tokenizer.limits:
        say(f"note on the tokenizer: {limit}")
    first, options = "", {}
    for arm, stages in experiment.arms.items():
        for name, stage in stages.items():
            size, infilling = stage.model.vocab_size, stage.data.infilling.rate
            wanted = tokenizer.vocab_size if infilling else tokenizer.pieces
            if size not in (wanted, tokenizer.vocab_size):
                first = first or f"{arm}.{name}.model.vocab_size is {size}"
                options[name] = f"--{name.replace('_', '-')}.model.vocab-size {wanted}"
    if first:
        raise UserError(
            f"{first} and the tokenizer has {tokenizer.pieces} pieces, {tokenizer.vocab_size} "
            f"with the infilling sentinels: pass {' '.join(options.values())}"
        )


def check_same_tokenizer(
    experiment: Experiment, tokenizer: tokenizers.Tokenizer, stages: Sequence[Stage]
) -> None:
    """Raises UserError where a stage starts from weights that were trained with other ids."""
    for init in dict.fromkeys(stage.init for stage in stages):
        theirs = load.tokenizer_of(init)
        if theirs is None and init.startswith(("hf:", "meta:")):
            if not experiment.tokenizer.path:
                message = f"has no {tokenizers.FILE}: pass --tokenizer.path with the model's own"
                raise UserError(f"{init} {message}")
        elif theirs and theirs.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{init} was trained with another tokenizer:"
                f" pass --tokenizer.path with its {tokenizers.FILE}"
            )


def batches_of(corpus: Corpus, stage: Stage, seed: int, rows: Sequence[int]) -> pipeline.Batches:
    """Returns the training batches of a stage; `rows` are those of the batch that this host reads."""
    train = {name: prepared.train for name, prepared in corpus.sources(stage).items()}
    return pipeline.Batches(train, stage.data, corpus.tokenizer, seed, rows)


def held_out(corpus: Corpus, stage: Stage) -> list[pipeline.Batch]:
    """Returns the packed sequences that the validation loss is measured on."""
    validation = {name: prepared.validation for name, prepared in corpus.sources(stage).items()}
    return pipeline.validation_batches(validation, stage.data, corpus.tokenizer, stage.eval_rows)


def stage_identity(corpus: Corpus, stage: ResolvedStage, before: str) -> str:
    """Returns the identity of a stage that follows the one of identity `before`.

    That of a finished stage is on record, so that its documents need not be read.
    """
    recorded = stage.folder.trained().identity() if stage.folder.is_trained() else ""
    if recorded:
        return recorded
    sources = corpus.sources(stage.stage)
    documents = {name: prepared.fingerprint for name, prepared in sources.items()}
    shared: list[Any] = [documents, corpus.tokenizer.fingerprint]
    if origin := stage.stage.init.partition(":")[2]:
        shared.append(str(user_path(origin)))  # a relative name means another place elsewhere
    return identity_of(stage.stage, before, stage.seed, shared)


def train(corpus: Corpus, resolved: ResolvedStage) -> None:
    """Trains one stage."""
    stage, mesh = resolved.stage, resolved.mesh
    rows = owned_rows(mesh, stage.data.batch_size)
    validation = place_validation(held_out(corpus, stage), stage, mesh)
    batches = batches_of(corpus, stage, resolved.seed, rows)
    run = StageRun(str(resolved), stage, resolved.folder, mesh, batches, rows, validation)
    train_stage(run, resolved.initial, resolved.seed)


def rows_trained_on(corpus: Corpus, last: ResolvedStage) -> Iterator[pipeline.Batch]:
    """Yields the batches of an arm's stages up to `last`, as they were trained on."""
    for part in last.chain:
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
    first = next(iter(chain.values()))  # the documents of all stages are this one's
    is_last = stage.index == len(chain) - 1
    probes = {name: p for name, p in experiment.probes.items() if p.applies(is_last)}
    if experiment.probes and not probes:
        return
    documents = [first.data.block_chars, first.data.seq_len, experiment.seed]
    answers: dict[str, Any] = {}
    for path in (trained.probes, stage.folder.probes):
        answers |= kept_answers(read_state(path), probes, documents)
    missing = {name: probe for name, probe in probes.items() if name not in answers}
    if missing:
        answers |= ask(missing, corpus, stage, trained, first, experiment.seed)
    if jax.process_index() == 0:
        in_order = {name: answers[name] for name in probes}
        write_json(stage.folder.probes, {"config": config_of(probes, documents), **in_order})


def ask(
    probes: dict[str, Probe],
    corpus: Corpus,
    resolved: ResolvedStage,
    trained: StageFolder,
    first: Stage,
    seed: int,
) -> dict[str, Any]:
    """Returns what the probes measure after a trained stage.

    Args:
      probes: those to run, by name.
      corpus: the documents and the tokenizer of the experiment.
      resolved: the stage.
      trained: the folder where it was trained.
      first: the first stage of the arm, whose documents and sequence length all stages share.
      seed: of the experiment.
    """
    stage = resolved.stage
    params = load_params(trained, stage.model, resolved.mesh)
    model = TrainedModel(stage.model, params, corpus.tokenizer, str(resolved))
    main_source = max(corpus.sources(stage), key=lambda source: getattr(stage.data.mixture, source))
    kinds = {"files": 0, "documents": first.data.block_chars}
    texts = {
        kind: [pipeline.text_of(d) for d in corpus.source(main_source, block).validation]
        for kind, block in kinds.items()
    }
    subject = Subject(
        model,
        files=texts["files"],
        documents=texts["documents"],
        training_rows=lambda: rows_trained_on(corpus, resolved),
        validation_rows=held_out(corpus, stage),
        seq_len=first.data.seq_len,
        seed=seed,
    )
    return run_probes(probes, subject, say)


def run_experiment(
    experiment: Experiment, claim: str, finding: FindingOf | None, choice: Any
) -> None:
    """Runs the arms (or the one named), writes their probes and the report.

    Exits with 128 + signal after a stop that saved, and with `peers.PEER_DIED` after the death of
    another host.

    Args:
      experiment: the arms, their corpus and tokenizer.
      claim: the docstring of the experiment's file, for the report.
      finding: the function that compares the arms, if the file has one.
      choice: a `launch.Run`.
    """
    started = time.monotonic()
    start_distributed()
    keep_compiled(choice.cache)
    folder = RunFolder(user_path(choice.out or f"runs/{experiment.name}-{experiment.scale}"))
    on_first_host(lambda: locks.check_free(folder.path))
    mesh = make_mesh(experiment.mesh)
    arms = {choice.arm: experiment.arms[choice.arm]} if choice.arm else experiment.arms
    stages = resolve(experiment, arms, folder, mesh)
    to_train = [s for s in stages if choice.fresh or not s.folder.is_trained()]
    for stage in to_train:
        stage.check()
    if not choice.fresh:
        check_folder(experiment, folder)
    corpus = Corpus(experiment, choice.cache)
    check_tokenizer(experiment, corpus.tokenizer)
    check_same_tokenizer(experiment, corpus.tokenizer, [s.stage for s in to_train])
    with opened_folder(experiment, folder, choice.fresh):
        try:
            with on_mesh(mesh), peers.ending_with_peers():
                run_stages(experiment, corpus, folder, stages, choice.reuse)
        except Stopped as stop:
            name = signal.Signals(stop.args[0]).name
            text = f"stopped by {name} and saved: run the same command again to continue"
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

    A stage that equals an earlier one, or one of the runs in the folder `under`, is read there.

    Args:
      experiment: the experiment.
      corpus: its documents and tokenizer.
      folder: the run's folder.
      stages: in the order in which they run.
      under: a folder of other runs; "" for none.
    """
    is_first = jax.process_index() == 0
    if is_first:
        corpus.tokenizer.save(folder.tokenizer)
    trained = trained_under(user_path(under)) if under else {}
    identity = ""
    for stage in stages:
        here = stage.folder
        identity = stage_identity(corpus, stage, identity if stage.before else "")
        if here.is_trained():
            at = here.trained()
            if is_first:
                here.repair_config(stage.stage)
            say(f"{stage}: done before, skipped")
        elif identity in trained:
            at = trained[identity]
            say(f"{stage}: equal to {at}, read from there")
            if is_first:
                here.point_to(at, stage.stage)
        else:
            at = here
            if is_first:
                here.begin(stage.stage, identity)
            train(corpus, stage)
        if at.identity() == identity:
            trained[identity] = at
        probe_stage(experiment, corpus, stage, at)
