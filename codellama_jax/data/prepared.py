"""Corpora that the verb `prepare` wrote, which a config names `prepared:DIR`.

The manifest holds the numbers of documents and tokens of a corpus: a plan reads nothing else. This
module imports neither TFDS nor Grain before documents are read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from etils import epath

from codellama_jax.config import PREPARED, CorpusConfig, Stage
from codellama_jax.data.documents import AGAIN, REPLACE, Shard, ShardedDocuments
from codellama_jax.errors import UserError
from codellama_jax.system.files import is_bucket, open_file, read_json, reason, user_path

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest
SPLITS = ("train", "validation")
CHARACTERS_PER_TOKEN = 4  # about; where the tokens of a corpus were not counted
READ_BYTES = 2**20  # of a file that are hashed at once
REQUESTS = 64  # to an object store at the same time
VALIDATION_SEED = 0


class Size(NamedTuple):
    """The size of a split."""

    documents: int
    characters: int


@dataclass(frozen=True)
class Manifest:
    """The description of a prepared corpus."""

    folder: epath.Path
    fingerprint: str  # of the contents: the same wherever the folder is
    data: epath.Path  # the folder of the TFDS dataset
    splits: dict[str, Size]
    tokens: dict[str, dict[str, int]]  # by the fingerprint of a tokenizer, then by split
    block_characters: int  # the maximum length of a document; 0 where files were not split
    files: dict[str, int]  # bytes by name
    hashes: dict[str, str]  # SHA-256 by name

    def training_tokens(self, tokenizer: str) -> tuple[int, bool]:
        """Returns the tokens of the split train, and whether they were counted.

        Args:
            tokenizer: the fingerprint of the tokenizer. Without its counts the tokens are estimated
                from the characters.
        """
        counted = self.tokens.get(tokenizer, {}).get("train", 0)
        if counted:
            return counted, True
        return self.splits["train"].characters // CHARACTERS_PER_TOKEN, False


@dataclass(frozen=True)
class Prepared:
    """Random access to the documents of a source: `train[i]` is {"id": bytes, "text": bytes}."""

    train: Sequence[dict[str, bytes]]
    validation: Sequence[dict[str, bytes]]
    counts: dict[str, int]  # of characters, of documents by split and of those dropped
    fingerprint: str  # of the ids and texts of both splits; the same in every folder
    # Whether the texts may exceed the memory: then only samples of them are read at once.
    is_large: bool = False


def is_prepared(path: str) -> bool:
    """Returns whether a path of a `CorpusConfig` names a prepared corpus."""
    return path.startswith(PREPARED)


def read_manifest(path: str) -> Manifest:
    """Returns the manifest of a corpus named `prepared:DIR`.

    Raises UserError if DIR is no prepared corpus, or one of another version.
    """
    folder = user_path(path.removeprefix(PREPARED))
    fix = f"run `codellama-jax prepare INPUT --out {folder}` first, or correct the folder"
    try:
        has_manifest = (folder / MANIFEST).exists()
    except (OSError, ImportError) as error:
        raise UserError(f"cannot read the prepared corpus {folder}: {reason(error)}") from error
    if not has_manifest:
        problem = f"has no {MANIFEST}" if folder.exists() else "does not exist"
        raise UserError(f"the prepared corpus {folder} {problem}: {fix}")
    values = read_json(folder / MANIFEST)
    try:
        version = values["format"]
        # Read inside the guard: a damaged manifest may lack even its format.
        if version == FORMAT:
            return _manifest(folder, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}): {AGAIN}"
        raise UserError(message) from error
    raise UserError(
        f"{folder / MANIFEST} has format {version!r} and this version reads {FORMAT}:"
        " prepare the corpus with this version"
    )


def _manifest(folder: epath.Path, values: dict[str, Any]) -> Manifest:
    splits = {}
    for split in SPLITS:
        size = values["splits"][split]
        splits[split] = Size(int(size["documents"]), int(size["characters"]))
    return Manifest(
        folder=folder,
        fingerprint=str(values["fingerprint"]),
        data=folder / values.get("data", ""),
        splits=splits,
        tokens=dict(values["tokens"]),
        block_characters=int(values["block_characters"]),
        files={name: int(size) for name, (size, _) in values["files"].items()},
        hashes={name: str(digest) for name, (_, digest) in values["files"].items()},
    )


def manifests_of(corpus: CorpusConfig, stage_name: str, stage: Stage) -> dict[str, Manifest]:
    """Returns the manifests of the prepared corpora that a stage reads, by source.

    Raises UserError for one whose documents were split otherwise than the stage states.
    """
    manifests = {}
    paths = corpus.paths()
    for source, share in stage.data.mixture.shares().items():
        # A source without a path is written by a data stage.
        if not share or not is_prepared(paths.get(source, "")):
            continue
        manifest = manifests[source] = read_manifest(paths[source])
        # The length of documents changes the training, so that a mismatch must not pass unnoticed.
        if stage.data.block_chars != manifest.block_characters:
            option = f"--{stage_name.replace('_', '-')}.data.block-chars"
            raise UserError(
                f"{option} is {stage.data.block_chars}, and the documents of {source} in"
                f" {manifest.folder} were prepared with --block-chars {manifest.block_characters}:"
                f" pass {option} {manifest.block_characters}, or prepare them with --block-chars"
                f" {stage.data.block_chars}"
            )
    return manifests


def open_prepared(path: str) -> Prepared:
    """Opens the documents of a corpus named `prepared:DIR`.

    Validation documents come in a fixed pseudo-random order, so that the first ones are not all of
    one repository. Raises UserError for a file that is missing or has another size than the
    manifest states, and for a split without documents.
    """
    import grain

    from codellama_jax.data.shuffle import shuffled

    corpus = open_corpus(read_manifest(path).folder)
    validation = shuffled(grain.MapDataset.source(corpus.validation), VALIDATION_SEED)
    # Only validation is shuffled here: training shuffles its documents in every epoch.
    return dataclasses.replace(corpus, validation=validation)


def open_corpus(folder: epath.Path, check_contents: bool = False) -> Prepared:
    """Opens the documents in the folder of a manifest, in the order of the shards.

    Checks that the files have their sizes and, with `check_contents`, which reads all of them,
    their hashes. Raises UserError like `open_prepared`.
    """
    manifest = read_manifest(f"{PREPARED}{folder}")
    for split in SPLITS:
        if not manifest.splits[split].documents:
            fix = "prepare it with a larger --validation-fraction or --split-by file"
            raise UserError(f"the split {split} of {manifest.folder} has no documents: {fix}")
    # Cheap, hence always: the usual damage is an interrupted copy. Hashes need all bytes to be
    # read.
    _check_sizes(manifest)
    if check_contents:
        _check_contents(manifest)
    documents = {split: ShardedDocuments(split, _shards(manifest, split)) for split in SPLITS}
    for split in SPLITS:
        # The files have their sizes by now, so that only metadata with other counts can be the
        # cause.
        if len(documents[split]) != manifest.splits[split].documents:
            problem = f"does not have the documents of {split} that {MANIFEST} states"
            raise UserError(f"{manifest.data} {problem}: {AGAIN}")
    counts = {"characters": sum(size.characters for size in manifest.splits.values())}
    counts |= {split: size.documents for split, size in manifest.splits.items()}
    train, validation = documents["train"], documents["validation"]
    return Prepared(train, validation, counts, manifest.fingerprint, is_large=True)


def _shards(manifest: Manifest, split: str) -> list[Shard]:
    """Returns the shards of a split, in the order of TFDS' metadata."""
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(manifest.data).info.splits[split]
    except Exception as error:  # TFDS raises many types for a damaged file
        problem = f"the metadata in {manifest.data} are damaged ({reason(error)})"
        raise UserError(f"{problem}: {AGAIN}") from error
    return [Shard(path, count) for path, count in zip(info.filepaths, info.shard_lengths)]


def _check_sizes(manifest: Manifest) -> None:
    """Raises UserError for a file of the dataset that is missing or has another size."""
    # Threads, because an object store takes a request for each of thousands of files.
    with ThreadPoolExecutor(REQUESTS if is_bucket(manifest.data) else 1) as pool:
        sizes = list(pool.map(_size, [manifest.data / name for name in manifest.files]))
    for (name, expected), size in zip(manifest.files.items(), sizes):
        if size < 0:
            raise UserError(f"the prepared corpus {manifest.folder} lacks {name}: {AGAIN}")
        if size != expected:
            problem = f"has {size:,} bytes instead of {expected:,}"
            raise UserError(f"{manifest.data / name} {problem}: {AGAIN}")


def _size(path: epath.Path) -> int:
    """Returns the size of a file in bytes, -1 without one."""
    try:
        # etils' stat fails on a local file whose owner has no name, as in many containers.
        return path.stat().length if is_bucket(path) else os.stat(path).st_size
    except OSError:
        return -1


def _check_contents(manifest: Manifest) -> None:
    """Raises UserError for a file whose contents have changed."""
    for name, expected in manifest.hashes.items():
        digest = hashlib.sha256()
        with open_file(manifest.data / name) as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
        if digest.hexdigest() != expected:
            raise UserError(f"{manifest.data / name} has changed: {REPLACE}")
