"""The documents and the tokenizer of an experiment, and the batches of its stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from etils import epath

from codellama_jax.checkpoints.vocabulary import is_padded
from codellama_jax.config import HELD_OUT, Experiment, Stage
from codellama_jax.data import builders, pipeline
from codellama_jax.data.documents import SAMPLE_SEED, sample
from codellama_jax.data.examples import usable
from codellama_jax.data.prepared import is_prepared, manifests_of, read_manifest
from codellama_jax.errors import UserError
from codellama_jax.runs.language_tags import tagged
from codellama_jax.sharding.hosts import say
from codellama_jax.system.files import read_state, user_path, write_json
from codellama_jax.tokenizers import byte_bpe, files, sentencepiece
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.training import MAX_TRAINING_CHARS
from codellama_jax.weights import gguf_files, load

if TYPE_CHECKING:
    from codellama_jax.runs.stages import ResolvedStage

MAX_PROBED_CHARS = 4_000_000  # of the held-out texts of a prepared corpus


class Corpus:
    """Prepared documents by source and block size, each prepared once; and the tokenizer."""

    def __init__(self, experiment: Experiment, cache: str):
        self.experiment, self.cache = experiment, cache
        # By source, block size and path: data stages write sources of one name for every arm.
        self.prepared: dict[tuple[str, int, str], builders.Prepared] = {}
        self.samples: dict[str, dict[str, int]] = {}  # of the tokenizer's texts, by source
        self.tokenizer = self._tokenizer()

    def source(self, name: str, block_chars: int) -> builders.Prepared:
        """Returns a source's documents, split at `block_chars` characters; 0 keeps files.

        Those of a prepared corpus are as they were prepared, whatever `block_chars` is.
        """
        corpus = self.experiment.corpus
        path = corpus.paths()[name]
        if is_prepared(path):
            block_chars = read_manifest(path).block_characters
        # Prepared on first use: a run whose stages have finished reads no documents at all.
        key = (name, block_chars, path)
        if key not in self.prepared:
            self.prepared[key] = builders.prepare(corpus, name, block_chars, self.cache, say)
        return self.prepared[key]

    def sources(self, stage: Stage) -> dict[str, builders.Prepared]:
        """Returns the sources that a stage's mixture names."""
        prepared = {}
        for name, share in stage.data.mixture.shares().items():
            if share:
                prepared[name] = self.source(name, stage.data.block_chars)
        if stage.data.language_tags:
            return {name: tagged(source) for name, source in prepared.items()}
        return prepared

    def held_out_texts(self, name: str, block_chars: int, language_tags: bool = False) -> list[str]:
        """Returns the documents for the probes of a stage; of a large corpus a fixed sample.

        These are all documents of `CorpusConfig.held_out`, or the validation documents of a source.

        Args:
            name: the source.
            block_chars: as for `source`.
            language_tags: whether they begin with their tag.
        """
        has_files = bool(self.experiment.corpus.held_out)
        source = self.source(HELD_OUT if has_files else name, block_chars)
        source = tagged(source) if language_tags else source
        splits = [source.train, source.validation] if has_files else [source.validation]
        texts: list[str] = []
        for documents in splits:
            if source.is_large:
                texts += sample(documents, MAX_PROBED_CHARS // len(splits))
            else:
                texts += [pipeline.text_of(document) for document in documents]
        return texts

    def save_counts(self, path: epath.Path) -> None:
        """Writes how many files and documents each source has, to a file for the report.

        A resumed run may prepare fewer sources than the one before: those in the file stay.
        """
        counts = read_state(path) or {}
        sources = self.experiment.corpus.paths()
        for (name, block, path_of_source), prepared in self.prepared.items():
            if sources.get(name) != path_of_source:
                continue  # written by a data stage, whose counts have a section of the report
            key = f"{name}, blocks of {block} characters" if block else name
            counts[key] = prepared.counts | self.samples.get(name, {})
        write_json(path, counts)

    def _tokenizer(self) -> Tokenizer:
        # Before any stage: vocabularies are compared with it while nothing is written yet.
        config = self.experiment.tokenizer
        if config.path and gguf_files.is_file(user_path(config.path)):
            return load.needed_tokenizer(user_path(config.path))
        if config.path:
            return files.load(user_path(config.path), config.kind)
        # The first stage's documents: all arms of an experiment start with the same ones.
        first_arm = next(iter(self.experiment.arms.values()))
        first = next(iter(first_arm.values()))
        texts = self._training_texts(first)
        cache = user_path(self.cache)
        if config.kind == "sentencepiece":
            return sentencepiece.train(texts, config.pieces, cache, say)
        return byte_bpe.train(texts, config.pieces, config.kind, cache, say)

    def _training_texts(self, stage: Stage) -> Iterator[str]:
        """Yields the texts that a tokenizer is trained on: all, or a sample of a large corpus."""
        shares = stage.data.mixture.shares()
        for name, source in self.sources(stage).items():
            if not source.is_large:
                for index in range(len(source.train)):
                    yield pipeline.text_of(source.train[index])
                continue
            # The shares of the mixture are also those of the sample.
            bound = round(MAX_TRAINING_CHARS * shares[name] / sum(shares.values()))
            texts = sample(source.train, bound)
            characters = sum(map(len, texts))
            self.samples[name] = {
                "tokenizer documents": len(texts),
                "tokenizer characters": characters,
            }
            drawn = f"{len(texts):,} of {len(source.train):,} documents drawn at random"
            say(f"tokenizer: {name}: {drawn}, {characters:,} characters (seed {SAMPLE_SEED})")
            yield from texts


def check_prepared(
    experiment: Experiment, stages: Sequence[ResolvedStage], path: epath.Path, fresh: bool
) -> dict[str, str]:
    """Returns the fingerprints of the prepared corpora that a run reads, by source.

    Raises UserError for a corpus that is not there, that has changed since the run was started, or
    whose documents were split otherwise than a stage states.

    Args:
        experiment: the experiment.
        stages: those that are not trained yet.
        path: the file of the run with the fingerprints of its start.
        fresh: the run starts again, so that its file does not count.
    """
    recorded: dict[str, str] = {} if fresh else read_state(path) or {}
    for stage in stages:
        manifests = manifests_of(experiment.corpus, stage.name, stage.stage)
        for source, manifest in manifests.items():
            before = recorded.setdefault(source, manifest.fingerprint)
            if before != manifest.fingerprint:
                raise UserError(
                    f"the prepared corpus {manifest.folder} of {source} has the fingerprint"
                    f" {manifest.fingerprint}, and this run was started with {before}: name the"
                    " folder that it was started with, choose another --out, or --fresh"
                )
    return recorded


def check_tokenizer(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raises UserError where a stage's vocabulary is not the tokenizer's; prints its limits."""
    for limit in tokenizer.limits:
        say(f"note on the tokenizer: {limit}")
    first_problem, options = "", {}
    for arm, stages in experiment.arms.items():
        for name, stage in stages.items():
            size, infilling = stage.model.vocab_size, stage.data.infilling.rate
            # Without infilling a model may still have the entries of the sentinels.
            needed = tokenizer.vocab_size if infilling else tokenizer.pieces
            is_known = size in (needed, tokenizer.vocab_size)
            if not is_known and not is_padded(size, tokenizer.vocab_size):
                first_problem = first_problem or f"{arm}.{name}.model.vocab_size is {size}"
                options[name] = f"--{name.replace('_', '-')}.model.vocab-size {needed}"
    if first_problem:
        raise UserError(
            f"{first_problem} and the tokenizer has {tokenizer.pieces} pieces,"
            f" {tokenizer.vocab_size} with the infilling sentinels:"
            f" pass {' '.join(options.values())}"
        )


def check_same_tokenizer(
    experiment: Experiment, tokenizer: Tokenizer, stages: Sequence[Stage]
) -> None:
    """Raises UserError where a stage starts from weights that were trained with other ids."""
    # Each init once: several arms start from the same weights.
    for init in dict.fromkeys(stage.init for stage in stages):
        theirs = load.tokenizer_of(init)  # None without one beside the weights
        # Ids of the wrong vocabulary raise no error later: the model would read other words than it
        # was trained on.
        if theirs is None and init.startswith(("hf:", "meta:")):
            if not experiment.tokenizer.path:
                message = f"has no {files.NAMES}: pass --tokenizer.path with the model's own"
                raise UserError(f"{init} {message}")
        elif theirs and theirs.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{init} was trained with another tokenizer:"
                f" pass --tokenizer.path with its {theirs.file_name}"
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
    batches = pipeline.validation_batches(validation, stage.data, corpus.tokenizer, stage.eval_rows)
    data = stage.data
    # An empty document has no target where the vocabulary has no BOS.
    if not any(batch["weights"].any() for batch in batches):
        fix = "read other documents, complete files (data.block_chars 0) or longer sequences"
        problem = f"none of the held-out documents is {usable(data)}"
        raise UserError(f"data.examples is {data.examples}, but {problem}: {fix}")
    return batches
