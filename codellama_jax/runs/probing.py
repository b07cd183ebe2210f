"""The probes of an experiment on its trained stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.checkpoints.loading import load_params
from codellama_jax.config import Experiment, Probe, Stage
from codellama_jax.data import generated_keys, pipeline
from codellama_jax.errors import UserError
from codellama_jax.models.trained import TrainedModel
from codellama_jax.probes.run import config_of, kept_answers, run_probes, scheduled
from codellama_jax.probes.subject import Subject
from codellama_jax.runs.corpus import Corpus, batches_of, held_out
from codellama_jax.runs.stages import ResolvedStage
from codellama_jax.sharding.hosts import say
from codellama_jax.system.files import read_state, write_json


def batches_trained_on(corpus: Corpus, last: ResolvedStage) -> Iterator[pipeline.Batch]:
    """Yields the batches that the model of stage `last` was trained on, in their order.

    They are those of an arm's stages up to it, from the last one on that does not continue the one
    before.
    """
    chain: list[ResolvedStage] = []
    for part in last.chain:
        # First parameters from the PRNG or from files have learned nothing of the stages before.
        if part.stage.init != "previous":
            chain = []
        chain.append(part)
    for part in chain:
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
    # Only then: answers of runs from before this option keep their form and are still read.
    if experiment.corpus.held_out:
        documents.append(experiment.corpus.held_out)
    answers: dict[str, Any] = {}
    # The later file wins: an answer measured for this stage goes before that of its equal stage.
    for path in (trained.probes, stage.folder.probes):
        answers |= kept_answers(read_state(path), probes, documents)
    for step, at_step in by_step.items():
        # Weights are loaded only for steps with an answer that is missing.
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
