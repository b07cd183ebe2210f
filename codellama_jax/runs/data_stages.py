"""Runs the data stages of an experiment: the models of an arm write a source of documents.

The folder of a data stage is beside those of the arm's stages. Its files grow answer by answer, so
that a process that was killed continues, and `done.json` holds the counts. The data depend on the
models, the options and the seed, of which the identity is a hash: an equal data stage is read, not
written again.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from codellama_jax.alignment.answers import Answerer, Reply, Request
from codellama_jax.alignment.commands import ModelOptions
from codellama_jax.alignment.model_names import identity_of_model
from codellama_jax.alignment.models import local
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.checkpoints.identity import data_identity
from codellama_jax.checkpoints.loading import load_params
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.hosts import say
from codellama_jax.system.files import is_bucket
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.chat import FORMATS

if TYPE_CHECKING:
    from codellama_jax.runs.corpus import Corpus
    from codellama_jax.runs.stages import ResolvedData, ResolvedStage


def check(data: ResolvedData) -> None:
    """Raises UserError for data that cannot be written on these hosts or into this folder.

    Also for a model that is no stage of the arm and cannot be found, and for a file without tasks.
    """
    fix = "write them with the verb on one machine, and pass --corpus.others"
    name = f"{data.name} FILE"
    if jax.process_count() > 1:
        raise UserError(f"the data stage {data} runs on one host only: {fix} {name}")
    if is_bucket(data.folder.path):
        raise UserError(f"the data stage {data} needs a local folder: {fix} {name}, or a local out")
    for model in data.stage.models():
        if model not in data.stages:
            # Raises now for a model outside of the arm that cannot be found: it is needed only
            # after the stages before it are trained, perhaps hours later.
            ModelOptions().answerer(model, 0)
    data.stage.content()


def write(data: ResolvedData, tokenizer: Tokenizer, trained: dict[str, StageFolder]) -> None:
    """Writes the data of a data stage, unless they are there.

    Args:
      data: the data stage; its models are trained.
      tokenizer: of the models.
      trained: finished stages by identity; this one is added.
    """
    here = data.folder
    if here.is_trained():
        say(f"{data}: done before, skipped")
        # Other arms read these data too: models that write once more may write others.
        written = here.trained()
        if identity := written.identity():
            trained[identity] = written
        return
    sources = []
    for model in data.stage.models():
        stage = data.stages.get(model)
        model_folder = stage.folder.trained() if stage else None
        if model_folder:
            known = model_folder.identity() or str(model_folder)
        else:
            # Published weights, a server, and a run of an old version are known by name alone.
            known = identity_of_model(model) or model
        sources.append(known)
    # The identity covers the identities of the models: another seed or config of theirs, and the
    # data are written again.
    shared = [sources, data.stage.content(), tokenizer.fingerprint]
    identity = data_identity(data.stage, data.seed, shared)
    if identity in trained:
        say(f"{data}: equal to {trained[identity]}, read from there")
        here.point_to(trained[identity], data.stage)
        return
    # Answers of other models must not be mixed with new ones in one file.
    if here.identity() not in ("", identity):
        say(f"{data}: begun with other models or options, starts again")
        here.path.rmtree()
    here.begin(data.stage, identity)
    say(f"{data}: writing data, {data.stage.amounts()}")
    folder = Path(here.path)
    counts = data.stage.make(_answerers(data, tokenizer), folder, data.seed)
    if not (folder / data.stage.output).stat().st_size:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in counts["reasons"].items())
        fix = "train the models longer, or ask for more"
        raise UserError(f"the data stage {data} kept nothing ({reasons}): {fix}")
    here.mark_written(counts)
    trained[identity] = here
    numbers = [f"{name} {count:,}" for name, count in counts.items() if isinstance(count, int)]
    say(f"{data}: {', '.join(numbers)}")


def with_data(corpus: Corpus, stage: ResolvedStage) -> Corpus:
    """Returns the corpus as a stage reads it: with the data written for it and those before it."""
    paths = {}
    # Also the data of earlier stages: probes read the batches of all stages up to this one.
    for part in stage.chain:
        for data in part.data:
            paths[data.name] = str(data.folder.trained().path / data.stage.output)
    if not paths:
        return corpus
    config = corpus.experiment.corpus
    others = dataclasses.replace(config, others=config.others | paths)
    # A shallow copy, which shares the prepared documents: only the paths of sources differ.
    of_stage = copy.copy(corpus)
    of_stage.experiment = dataclasses.replace(corpus.experiment, corpus=others)
    return of_stage


def _answerers(data: ResolvedData, tokenizer: Tokenizer) -> Callable[..., Answerer]:
    """Returns the function that `DataStage.make` takes as `answerers`."""

    # One model at a time: those of a data stage write one after the other.
    @functools.lru_cache(maxsize=1)
    def loaded(name: str) -> TrainedModel:
        stage = data.stages[name]
        params = load_params(stage.folder.trained(), stage.stage.model, stage.mesh)
        return TrainedModel(stage.stage.model, params, tokenizer, str(stage))

    def answerer(name: str, chat: str, sampling: Sampling) -> Answerer:
        # Not a stage of this arm: a model that the user names by a path or an address.
        if name not in data.stages:
            options = ModelOptions(sampling.temperature, sampling.top_p, sampling.max_new_tokens)
            return options.answerer(name, sampling.seed)

        def answer(requests: Sequence[Request], at_once: int) -> Iterable[tuple[int, Reply]]:
            return local(loaded(name), FORMATS[chat], sampling)(requests, at_once)

        return answer

    return answerer
