"""Runs an experiment: corpus and tokenizer, the stages of each arm, probes, report.

The same command started again resumes it.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from codellama_jax.checked import FieldError
from codellama_jax.checkpoints import checkpoint
from codellama_jax.checkpoints import folder as reuse
from codellama_jax.config import Experiment, Stage, seeded, to_dict
from codellama_jax.data import builders, pipeline
from codellama_jax.errors import UserError
from codellama_jax.probes.run import run_probes
from codellama_jax.report.findings import FindingOf
from codellama_jax.report.report import write_report
from codellama_jax.runs.folder import check_folder, opened_folder
from codellama_jax.sharding import peers
from codellama_jax.sharding.hosts import on_first_host, say, start_distributed
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.system import locks
from codellama_jax.system.files import delete_file, read_state, user_path, write_file, write_json
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.training.loop import (
    StageRun,
    Stopped,
    check_stage,
    owned_rows,
    place_validation,
    train_stage,
)
from codellama_jax.training.step import check_memory
from codellama_jax.weights import load

SEEDS_APART = 1_000_003  # far more than an arm has stages, each of which takes the next number


class Place(NamedTuple):
    """A stage of one seed of an arm."""

    arm: str
    number: int  # of the seed
    name: str
    index: int  # in the arm

    def __str__(self) -> str:
        return f"{seeded(self.arm, self.number)}/{self.name}"

    def seed(self, experiment: Experiment) -> int:
        return experiment.seed + self.number * SEEDS_APART + self.index


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


def check_same_tokenizer(experiment: Experiment, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises UserError where a stage starts from weights that were trained with other ids."""
    for stages in experiment.arms.values():
        for stage in stages.values():
            theirs = load.tokenizer_of(stage.init)
            if theirs is None and stage.init.startswith(("hf:", "meta:")):
                if not experiment.tokenizer.path:
                    message = "has no tokenizer.model: pass --tokenizer.path with the model's own"
                    raise UserError(f"{stage.init} {message}")
            elif theirs and theirs.fingerprint != tokenizer.fingerprint:
                raise UserError(
                    f"{stage.init} was trained with another tokenizer:"
                    " pass --tokenizer.path with its tokenizer.model"
                )


def initial_params(
    stage: Stage, before: tuple[epath.Path, Stage] | None, mesh: Mesh
) -> Callable[[], Any] | None:
    """Returns what loads the parameters that a stage starts from; None for random ones."""
    if stage.init == "scratch":
        return None
    if stage.init == "previous":
        if before is None:
            raise UserError(
                "the first stage of an arm has none before it:"
                " its init is scratch, run:DIR, hf:DIR or meta:DIR"
            )
        checkpoint.check_shapes(before[0], before[1].model, stage.model)
        return lambda: checkpoint.load_params(before[0], stage, mesh)
    return load.initial_params(stage, mesh)


def batches_of(corpus: Corpus, stage: Stage, seed: int, rows: Sequence[int]) -> pipeline.Batches:
    train = {name: prepared.train for name, prepared in corpus.sources(stage).items()}
    return pipeline.Batches(train, stage.data, corpus.tokenizer, seed, rows)


def held_out(corpus: Corpus, stage: Stage) -> list[pipeline.Batch]:
    validation = {name: prepared.validation for name, prepared in corpus.sources(stage).items()}
    return pipeline.validation_batches(validation, stage.data, corpus.tokenizer, stage.eval_rows)


def stage_identity(experiment: Experiment, corpus: Corpus, place: Place, before: str) -> str:
    """Returns the identity of a stage that follows the one of identity `before`."""
    stage = experiment.arms[place.arm][place.name]
    documents = {name: prepared.fingerprint for name, prepared in corpus.sources(stage).items()}
    shared: list[Any] = [documents, corpus.tokenizer.fingerprint]
    if origin := stage.init.partition(":")[2]:
        shared.append(str(user_path(origin)))  # a relative name means another place elsewhere
    return reuse.identity(stage, before, place.seed(experiment), shared)


def run_stage(
    experiment: Experiment, corpus: Corpus, folder: epath.Path, place: Place, initial, mesh: Mesh
) -> None:
    """Trains one stage."""
    stage = experiment.arms[place.arm][place.name]
    rows = owned_rows(mesh, stage.data.batch_size)
    validation = place_validation(held_out(corpus, stage), stage, mesh)
    seed = place.seed(experiment)
    batches = batches_of(corpus, stage, seed, rows)
    train_stage(StageRun(str(place), stage, folder, mesh, batches, rows, validation), initial, seed)


def begin_stage(folder: epath.Path, stage: Stage, identity: str) -> None:
    """Makes the folder of a stage to train. One that was begun before keeps its identity."""
    if jax.process_index():
        return
    delete_file(folder / reuse.DONE)  # it named a stage that is gone, or it is damaged
    write_json(folder / "config.json", to_dict(stage))
    if not reuse.identity_of(folder):
        write_file(folder / reuse.IDENTITY, identity)


def repair_config(folder: epath.Path, stage: Stage) -> None:
    """Writes the config of a stage that is done again if it is damaged or missing."""
    if jax.process_index() == 0 and read_state(folder / "config.json") is None:
        write_json(folder / "config.json", to_dict(stage))


def point_to(trained: epath.Path, folder: epath.Path, stage: Stage) -> None:
    if jax.process_index() == 0:
        reuse.point(folder, stage, trained)


def rows_trained_on(
    experiment: Experiment, corpus: Corpus, last: Place
) -> Iterator[pipeline.Batch]:
    """Yields the batches of an arm's stages up to `last`, as they were trained on."""
    for index, stage in enumerate(list(experiment.arms[last.arm].values())[: last.index + 1]):
        with batches_of(
            corpus, stage, last._replace(index=index).seed(experiment), range(stage.data.batch_size)
        ) as batches:
            yield from itertools.islice(batches, stage.steps)


def probe_stage(
    experiment: Experiment,
    corpus: Corpus,
    folder: epath.Path,
    trained: epath.Path,
    place: Place,
    mesh: Mesh,
) -> None:
    """Runs the experiment's probes on a trained stage and writes their answers.

    Answers to the same probes that are already written, here or at `trained`, are kept.

    Args:
      experiment: the experiment.
      corpus: its documents and tokenizer.
      folder: the folder of this stage, for probes.json.
      trained: the folder where the stage was trained: the same one, or that of an equal stage.
      place: the stage's arm, seed and name.
      mesh: the devices.
    """
    chain = experiment.arms[place.arm]
    first = next(iter(chain.values()))  # the documents of all stages are this one's
    if experiment.probes.last_stage_only and place.index < len(chain) - 1:
        return
    documents = [first.data.block_chars, first.data.seq_len, experiment.seed]
    config = to_dict(experiment.probes) | {"documents": documents}
    answers = None
    for path in (folder / "probes.json", trained / "probes.json"):
        written = read_state(path)
        if answers is None and written and written.get("config") == config:
            answers = written
    if answers is None:
        answers = {"config": config, **ask(experiment, corpus, trained, place, mesh, first)}
    if jax.process_index() == 0:
        write_json(folder / "probes.json", answers)


def ask(
    experiment: Experiment,
    corpus: Corpus,
    folder: epath.Path,
    place: Place,
    mesh: Mesh,
    first: Stage,
) -> dict[str, Any]:
    """Returns what the probes find in a trained stage."""
    say(f"{place}: probes")
    stage = experiment.arms[place.arm][place.name]
    run = checkpoint.Run(
        stage.model, checkpoint.load_params(folder, stage, mesh), corpus.tokenizer, str(place)
    )
    main_source = max(corpus.sources(stage), key=lambda source: getattr(stage.data.mixture, source))
    kinds = {"files": 0, "documents": first.data.block_chars}
    texts = {
        kind: [pipeline.text_of(d) for d in corpus.source(main_source, block).validation]
        for kind, block in kinds.items()
    }
    trained_on = rows_trained_on(experiment, corpus, place)

    def say_part(part: str) -> None:
        say(f"{place}: probe: {part}")

    return run_probes(
        experiment.probes,
        run,
        texts,
        trained_on,
        held_out(corpus, stage),
        first.data.seq_len,
        experiment.seed,
        say_part,
    )


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
    checkpoint.keep_compiled(choice.cache)
    folder = user_path(choice.out or f"runs/{experiment.name}-{experiment.scale}")
    on_first_host(lambda: locks.check_free(folder))
    mesh = make_mesh(experiment.mesh)
    arms = {choice.arm: experiment.arms[choice.arm]} if choice.arm else experiment.arms
    check_stages(arms, folder, mesh)
    if not choice.fresh:
        check_folder(experiment, folder)
    corpus = Corpus(experiment, choice.cache)
    check_tokenizer(experiment, corpus.tokenizer)
    check_same_tokenizer(experiment, corpus.tokenizer)
    with opened_folder(experiment, folder, choice.fresh):
        try:
            with on_mesh(mesh), peers.ending_with_peers():
                run_arms(experiment, corpus, folder, arms, mesh, choice.reuse)
        except Stopped as stop:
            name = signal.Signals(stop.args[0]).name
            text = f"stopped by {name} and saved: run the same command again to continue"
            print(text, file=sys.stderr)
            sys.exit(128 + stop.args[0])
        if jax.process_index() == 0:
            corpus.save_counts(folder / "corpus.json")
            say("writing the report")
            write_report(folder, experiment, claim, finding, time.monotonic() - started)
            say(f"report: {folder / 'report.html'}")


def check_stages(arms: dict[str, dict[str, Stage]], folder: epath.Path, mesh: Mesh) -> None:
    """Raises UserError for a stage that cannot be on this mesh or after the one before it."""
    for chain in arms.values():
        before = None
        for name, stage in chain.items():
            try:
                check_stage(stage, mesh)
                initial_params(stage, before, mesh)
                check_memory(stage, mesh)
            except FieldError as error:
                raise error.under(name) from None
            before = (folder / name, stage)


def run_arms(
    experiment: Experiment,
    corpus: Corpus,
    folder: epath.Path,
    arms: dict[str, dict[str, Stage]],
    mesh: Mesh,
    under: str,
) -> None:
    """Runs every seed of the arms.

    A stage that equals one of an earlier arm, or of the runs in the folder `under`, is read there.

    Args:
      experiment: the experiment.
      corpus: its documents and tokenizer.
      folder: the run's folder.
      arms: the arms to run.
      mesh: the devices.
      under: a folder of other runs; "" for none.
    """
    if jax.process_index() == 0:
        corpus.tokenizer.save(folder / "tokenizer.model")
    trained = reuse.trained_under(user_path(under)) if under else {}
    for number, (arm, chain) in itertools.product(range(experiment.seeds), arms.items()):
        before, identity = None, ""
        for index, (name, stage) in enumerate(chain.items()):
            place = Place(arm, number, name, index)
            initial, here = initial_params(stage, before, mesh), folder / str(place)
            identity = stage_identity(experiment, corpus, place, identity)
            if reuse.is_trained(here):
                at = reuse.followed(here)
                repair_config(here, stage)
                say(f"{place}: done before, skipped")
            elif identity in trained:
                at = trained[identity]
                say(f"{place}: equal to {at}, read from there")
                point_to(at, here, stage)
            else:
                at = here
                begin_stage(here, stage, identity)
                run_stage(experiment, corpus, here, place, initial, mesh)
            if reuse.identity_of(at) == identity:
                trained[identity] = at
            probe_stage(experiment, corpus, here, at, place, mesh)
            before = (at, stage)
