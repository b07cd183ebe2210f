"""Prepared documents: a TFDS dataset in ArrayRecord files, cached in a folder and read at random.

TensorFlow is not imported. A cached dataset that is damaged is prepared again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import uuid
import zlib
from typing import Any

from etils import epath

from codellama_jax.config import CorpusConfig
from codellama_jax.data import sources
from codellama_jax.data.prepared import SPLITS, Prepared, is_prepared, open_prepared
from codellama_jax.errors import UserError
from codellama_jax.system import locks
from codellama_jax.system.files import (
    is_bucket,
    open_file,
    read_json,
    reason,
    user_path,
    write_json,
)
from codellama_jax.system.progress import Say, announced, silent

# Of the contents and the split of a prepared corpus; part of the name of its folder.
VERSION = "1.1.0"
TEXT = ("discussions", "language")  # sources of natural language; all others are code
# The file of a cache folder that names the subfolder with complete documents; it is written last.
RECORD = "prepared.json"


def prepare(
    corpus: CorpusConfig,
    source: str,
    block_chars: int,
    cache_dir: epath.PathLike,
    print_line: Say = silent,
) -> Prepared:
    """Returns the documents of a source, from `cache_dir` if they are prepared already.

    A path `prepared:DIR` is opened as it was prepared, whatever `block_chars` is.

    Any number of processes may do so at the same time. The others wait for the first; where the
    file system has no locks, each writes a separate subfolder. One small file, written last, names
    the subfolder in use.

    Raises UserError if there is nothing to read or the disk is full.

    Args:
        corpus: where the documents of each source come from.
        source: the name of the source.
        block_chars: the maximum length of a document in characters; 0 does not split files.
        cache_dir: a folder, local or gs://.
        print_line: prints a line of progress.
    """
    path = corpus.paths()[source]
    if is_prepared(path):
        return open_prepared(path)
    with announced(print_line, f"{source}: listing the files of {path}"):
        items = sources.sample(sources.find(path), corpus.max_files)
    is_code = source not in TEXT
    folder = user_path(cache_dir) / _folder_name(path, items, is_code, block_chars, corpus)
    try:
        if prepared := _cached(folder, print_line):
            return prepared
        with locks.one_after_another(folder, print_line):
            # Another process may have prepared it while this one waited for the lock.
            if prepared := _cached(folder, silent):
                return prepared
            with announced(print_line, f"{source}: reading {len(items):,} files of {path}"):
                loaded = sources.load(items, is_code)
                splits = _splits(loaded, path, len(items), block_chars, corpus.validation_fraction)
                _write(folder, splits, loaded.counts)
        print_line(_summary(source, loaded))
        return _open(folder, read_json(folder / RECORD))
    except (OSError, ImportError, RuntimeError) as error:  # TFDS raises RuntimeError: disk full
        raise UserError(f"cannot prepare the corpus in {folder}: {reason(error)}") from error


def _folder_name(
    path: str, items: list[sources.Item], is_code: bool, block_chars: int, corpus: CorpusConfig
) -> str:
    """Returns a folder name that changes with anything that changes the documents.

    A stamp changes with the content of a file, so that a prepared corpus is found again without
    reading the files.
    """
    stamps = [(item.id, item.stamp) for item in items]
    inputs = [VERSION, is_code, block_chars, corpus.validation_fraction, stamps]
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    readable = re.sub(r"\W+", "-", path).strip("-")[-40:]
    return f"{readable}-{key}"


def _summary(source: str, loaded: sources.Loaded) -> str:
    counts = loaded.counts
    kept = f"{source}: {counts['files']:,} files, {counts['characters']:,} characters"
    return f"{kept}; left out: {loaded.reasons()}" if loaded.dropped else kept


def _splits(
    loaded: sources.Loaded, path: str, listed: int, block_chars: int, fraction: float
) -> dict[str, list[tuple[str, str]]]:
    """Returns the (id, text) of the documents of each split.

    All documents of a file are in the same split. Raises UserError for fewer than two files.

    Args:
        loaded: the files that are kept.
        path: the corpus, for the message.
        listed: the number of files before any was dropped, for the message.
        block_chars: the maximum length of a document in characters; 0 does not split files.
        fraction: the share of files in the validation split.
    """
    files = loaded.documents
    if len(files) < 2:
        raise UserError(
            f"of the {listed:,} files of the corpus {len(files)} can be used ({path}), "
            "and it takes one to train and one to validate. "
            f"Left out: {loaded.reasons() or 'none'}. Add files: {sources.READABLE_CORPUS}"
        )
    # The position of a file depends on its name only, so that a new file moves no other one from
    # training to validation.
    positions = sorted((sources.position(file.id), file.id) for file in files)
    below = sum(position < fraction for position, _ in positions)
    count = min(max(below, 1), len(files) - 1)  # neither split may be empty
    validation_ids = {name for _, name in positions[:count]}
    splits: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for file in files:
        split = splits["validation" if file.id in validation_ids else "train"]
        if block_chars:
            for i, block in enumerate(sources.blocks(file.text, block_chars)):
                split.append((f"{file.id}#{i}", block))
        else:
            split.append((file.id, file.text))
    return splits


def _write(folder: epath.Path, splits: dict[str, list], counts: dict[str, int]) -> None:
    """Writes the documents to a new subfolder of `folder`, then the record that names it."""
    attempt = folder / uuid.uuid4().hex
    try:
        builder = _builder(attempt, splits)
        # TFDS prints its progress and its paths.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
        # Without locks another process may have written the same documents meanwhile.
        if _cached(folder, silent):
            attempt.rmtree()
            return
        record = {
            "path": str(builder.data_path.relative_to(folder)),
            "counts": counts | {split: len(documents) for split, documents in splits.items()},
            "fingerprint": hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16],
            "files": _checksums(builder.data_path),
        }
        write_json(folder / RECORD, record)
    except BaseException:  # an interrupt too must leave no half of a corpus behind
        attempt.rmtree(missing_ok=True)
        raise


def _builder(folder: epath.Path, splits: dict[str, list]) -> Any:
    """Returns the TFDS builder that writes the (id, text) of each split to `folder`."""
    import tensorflow_datasets as tfds  # takes seconds: only where documents are written or read

    # mypy does not see the base class, which TFDS imports lazily.
    class Documents(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        """Documents with their ids, in the splits train and validation."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "text": tfds.features.Text()},
            )
            return tfds.core.DatasetInfo(
                builder=self,
                features=features,
                description=self.__doc__,
            )

        def _split_generators(self, dl_manager: Any) -> dict:
            return {split: self._generate_examples(splits[split]) for split in splits}

        def _generate_examples(self, documents: list) -> Any:
            for name, text in documents:
                yield name, {"id": name, "text": text}

    tfds.disable_progress_bar()
    return Documents(data_dir=folder)


def _cached(folder: epath.Path, print_line: Say) -> Prepared | None:
    """Returns the prepared documents in a cache folder, None if they are missing or damaged."""
    if not (folder / RECORD).exists():
        return None
    try:
        return _open(folder, read_json(folder / RECORD))
    except Exception as error:  # TFDS and ArrayRecord raise many types for a damaged file
        problem = f"the prepared corpus in {folder} is damaged ({reason(error)})"
        print_line(f"{problem}: preparing it again")
        return None


def _open(folder: epath.Path, record: dict[str, Any]) -> Prepared:
    """Opens the documents that prepared.json names. Raises an exception if a file is damaged."""
    import tensorflow_datasets as tfds

    data = folder / record["path"]
    # Caches of earlier versions have no checksums.
    for name, checksum in record.get("files", {}).items():
        if _checksum(data / name) != checksum:
            raise ValueError(f"{name} has changed")
    builder = tfds.builder_from_directory(data)
    splits = [builder.as_data_source(split) for split in SPLITS]
    for split, documents in zip(SPLITS, splits):
        if len(documents) != record["counts"][split]:
            raise ValueError(f"{split} holds {len(documents)} documents")
        # Reading the first and the last document shows a truncated file of a cache without
        # checksums.
        _ = documents[0], documents[len(documents) - 1]
    train, validation = splits
    return Prepared(train, validation, record["counts"], record["fingerprint"])


def _checksums(data: epath.Path) -> dict[str, list[int]]:
    return {path.name: _checksum(path) for path in sorted(data.iterdir())}


def _checksum(path: epath.Path) -> list[int]:
    """Returns [size, CRC-32] of a file, on an object store only [size]."""
    # The CRC would download the corpus once more.
    if is_bucket(path):
        return [path.stat().length]
    size = crc = 0
    with open_file(path) as file:
        while part := file.read(1 << 20):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]
