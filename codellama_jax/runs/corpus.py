"""The documents and the tokenizer of an experiment, and the batches of its stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etils import epath

from codellama_jax.config import Experiment, Stage
from codellama_jax.data import builders, pipeline
from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import say
from codellama_jax.system.files import read_state, user_path, write_json
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.weights import load


class Corpus:
    """Prepared documents by source and block size, each prepared once; and the tokenizer."""

    def __init__(self, experiment: Experiment, cache: str):
        self.experiment, self.cache = experiment, cache
        self.prepared: dict[tuple[str, int], builders.Prepared] = {}
        self.tokenizer = self._tokenizer()

    def source(self, name: str, block_chars: int) -> builders.Prepared:
        """Returns a source's documents, split at `block_chars` characters; 0 keeps files."""
        # Prepared on first use: a run whose stages have finished reads no documents at all.
        key = (name, block_chars)
        if key not in self.prepared:
            corpus = self.experiment.corpus
            self.prepared[key] = builders.prepare(corpus, name, block_chars, self.cache, say)
        return self.prepared[key]

    def sources(self, stage: Stage) -> dict[str, builders.Prepared]:
        """Returns the sources that a stage's mixture names."""
        prepared = {}
        for name, share in stage.data.mixture.shares().items():
            if share:
                prepared[name] = self.source(name, stage.data.block_chars)
        return prepared

    def save_counts(self, path: epath.Path) -> None:
        """Writes how many files and documents each source has, to a file for the report.

        A resumed run may prepare fewer sources than the one before: those in the file stay.
        """
        counts = read_state(path) or {}
        for (name, block), prepared in self.prepared.items():
            key = f"{name}, blocks of {block} characters" if block else name
            counts[key] = prepared.counts
        write_json(path, counts)

    def _tokenizer(self) -> tokenizers.Tokenizer:
        # Before any stage: vocabularies are compared with it while nothing is written yet.
        config = self.experiment.tokenizer
        if config.path:
            return tokenizers.load(user_path(config.path))
        # The first stage's documents: all arms of an experiment start with the same ones.
        first_arm = next(iter(self.experiment.arms.values()))
        first = next(iter(first_arm.values()))
        texts = _training_texts(self.sources(first))
        return tokenizers.train(texts, config.pieces, user_path(self.cache), say)


def _training_texts(sources: dict[str, builders.Prepared]) -> Iterator[str]:
    for prepared in sources.values():
        for document in prepared.train:
            yield pipeline.text_of(document)


def check_tokenizer(experiment: Experiment, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises UserError where a stage's vocabulary is not the tokenizer's; prints its limits."""
    for limit in tokenizer.limits:
        say(f"note on the tokenizer: {limit}")
    first_problem, options = "", {}
    for arm, stages in experiment.arms.items():
        for name, stage in stages.items():
            size, infilling = stage.model.vocab_size, stage.data.infilling.rate
            # Without infilling a model may still have the entries of the sentinels.
            needed = tokenizer.vocab_size if infilling else tokenizer.pieces
            if size not in (needed, tokenizer.vocab_size):
                first_problem = first_problem or f"{arm}.{name}.model.vocab_size is {size}"
                options[name] = f"--{name.replace('_', '-')}.model.vocab-size {needed}"
    if first_problem:
        raise UserError(
            f"{first_problem} and the tokenizer has {tokenizer.pieces} pieces,"
            f" {tokenizer.vocab_size} with the infilling sentinels:"
            f" pass {' '.join(options.values())}"
        )


def check_same_tokenizer(
    experiment: Experiment, tokenizer: tokenizers.Tokenizer, stages: Sequence[Stage]
) -> None:
    """Raises UserError where a stage starts from weights that were trained with other ids."""
    # Each init once: several arms start from the same weights.
    for init in dict.fromkeys(stage.init for stage in stages):
        theirs = load.tokenizer_of(init)  # None without one beside the weights
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
    """Returns the training batches of a stage.

    Args:
      corpus: the documents and the tokenizer.
      stage: the config.
      seed: the PRNG seed of the order of documents and of infilling.
      rows: the indices of the sequences of a batch that this host reads.
    """
    train = {name: prepared.train for name, prepared in corpus.sources(stage).items()}
    return pipeline.Batches(train, stage.data, corpus.tokenizer, seed, rows)


def held_out(corpus: Corpus, stage: Stage) -> list[pipeline.Batch]:
    """Returns the packed sequences that the validation loss is measured on."""
    validation = {name: prepared.validation for name, prepared in corpus.sources(stage).items()}
    return pipeline.validation_batches(validation, stage.data, corpus.tokenizer, stage.eval_rows)
