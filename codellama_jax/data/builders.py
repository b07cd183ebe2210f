"""Prepared documents: a TFDS dataset in ArrayRecord files, cached in a folder and read at random.

No TensorFlow. A cached dataset that is damaged is prepared again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from codellama_jax.config import CorpusConfig
from codellama_jax.data import sources
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

VERSION = "1.1.0"  # of what is kept and how it is split; part of the name of the cache folder
CODE = ("code", "python")
SPLITS = ("train", "validation")
RECORD = "prepared.json"  # names the folder that counts; written last


@dataclass(frozen=True)
class Prepared:
    """Random access to the documents of a source: `train[i]` is {"id": bytes, "text": bytes}."""

    train: Sequence[dict[str, bytes]]
    validation: Sequence[dict[str, bytes]]
    counts: dict[str, int]  # sources.COUNTS of the files, then the documents of each split
    fingerprint: str  # of all ids and texts of both splits, wherever they were prepared


def prepare(
    corpus: CorpusConfig,
    source: str,
    block_chars: int,
    cache_dir: epath.PathLike,
    say: Say = silent,
) -> Prepared:
    """Prepares the documents of a source, or finds them prepared in `cache_dir`.

    Any number of processes may do so at once: the others wait for the first or, where there are no
    locks, each writes a separate folder. One small file, written last, names the folder that counts.
    Raises UserError if there is nothing to read or no room to write.

    Args:
        corpus: where the documents of each source come from.
        source: `code`, `python`, `discussions` or `language`.
        block_chars: characters of the longest document; 0 keeps files complete.
        cache_dir: a folder, local or gs://.
        say: prints a line of progress.
    """
    place = getattr(corpus, source)
    with announced(say, f"{source}: listing the files of {place}"):
        items = sources.sample(sources.find(place), corpus.max_files)
    code = source in CODE
    stamps = [(item.id, item.stamp) for item in items]
    made_of = [VERSION, code, block_chars, corpus.validation_fraction, stamps]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    name = re.sub(r"\W+", "-", place).strip("-")[-40:]
    folder = user_path(cache_dir) / f"{name}-{key}"
    try:
        if prepared := _found(folder, say):
            return prepared
        with locks.one_after_another(folder, say):
            if prepared := _found(folder, silent):  # by the process that this one has waited for
                return prepared
            with announced(say, f"{source}: reading {len(items):,} files of {place}"):
                loaded = sources.load(items, code)
                splits = _splits(loaded, place, len(items), block_chars, corpus.validation_fraction)
                _write(folder, splits, loaded.counts)
        say(_summary(source, loaded))
        return _open(folder, read_json(folder / RECORD))
    except (OSError, ImportError, RuntimeError) as error:  # TFDS wraps a full disk
        raise UserError(f"cannot prepare the corpus in {folder}: {reason(error)}") from error


def _summary(source: str, loaded: sources.Loaded) -> str:
    counts = loaded.counts
    kept = f"{source}: {counts['files']:,} files, {counts['characters']:,} characters"
    return f"{kept}; left out: {loaded.reasons()}" if loaded.dropped else kept


def _splits(
    loaded: sources.Loaded, place: str, listed: int, block_chars: int, fraction: float
) -> dict[str, list[tuple[str, str]]]:
    """Returns the (id, text) of the documents of each split. All of a file are in one split."""
    files = loaded.documents
    if len(files) < 2:
        raise UserError(
            f"of the {listed:,} files of the corpus {len(files)} can be used ({place}), "
            "and it takes one to train and one to validate. "
            f"Left out: {loaded.reasons() or 'none'}. Add files: {sources.WHAT_IS_READ}"
        )
    places = sorted((sources.position(file.id), file.id) for file in files)
    count = min(max(sum(place < fraction for place, _ in places), 1), len(files) - 1)
    held_out = {name for _, name in places[:count]}
    splits: dict[str, list] = {split: [] for split in SPLITS}
    for file in files:
        parts = sources.blocks(file.text, block_chars) if block_chars else [file.text]
        ids = [f"{file.id}#{i}" for i in range(len(parts))] if block_chars else [file.id]
        splits["validation" if file.id in held_out else "train"] += zip(ids, parts)
    return splits


def _write(folder: epath.Path, splits: dict[str, list], counts: dict[str, int]) -> None:
    attempt = folder / uuid.uuid4().hex
    try:
        builder = _builder(attempt, splits)
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
        if _found(folder, silent):  # another process was faster
            attempt.rmtree()
            return
        record = {
            "path": str(builder.data_path.relative_to(folder)),
            "counts": counts | {split: len(documents) for split, documents in splits.items()},
            "fingerprint": hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16],
            "files": _checksums(builder.data_path),
        }
        write_json(folder / RECORD, record)
    except BaseException:
        attempt.rmtree(missing_ok=True)
        raise


def _builder(folder: epath.Path, splits: dict[str, list]) -> Any:
    """Returns what writes the (id, text) of each split. Imports TFDS, which takes a while."""
    import tensorflow_datasets as tfds

    class Documents(tfds.core.GeneratorBasedBuilder, skip_registration=True):
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
            return ((name, {"id": name, "text": text}) for name, text in documents)

    tfds.disable_progress_bar()
    return Documents(data_dir=folder)


def _found(folder: epath.Path, say: Say) -> Prepared | None:
    """Returns the prepared documents in a cache folder; None where they are missing or damaged."""
    if not (folder / RECORD).exists():
        return None
    try:
        return _open(folder, read_json(folder / RECORD))
    except Exception as error:  # whatever TFDS and ArrayRecord raise for a damaged file
        say(f"the prepared corpus in {folder} is damaged ({reason(error)}): preparing it again")
        return None


def _open(folder: epath.Path, record: dict[str, Any]) -> Prepared:
    """Opens what prepared.json names. Raises some exception for files that are damaged."""
    import tensorflow_datasets as tfds

    data = folder / record["path"]
    # Caches of earlier versions have no checksums.
    for name, wanted in record.get("files", {}).items():
        if _checksum(data / name) != wanted:
            raise ValueError(f"{name} has changed")
    builder = tfds.builder_from_directory(data)
    splits = [builder.as_data_source(split) for split in SPLITS]
    for split, documents in zip(SPLITS, splits):
        if len(documents) != record["counts"][split]:
            raise ValueError(f"{split} holds {len(documents)} documents")
        _ = documents[0], documents[len(documents) - 1]
    train, validation = splits
    return Prepared(train, validation, record["counts"], record["fingerprint"])


def _checksums(data: epath.Path) -> dict[str, list[int]]:
    return {path.name: _checksum(path) for path in sorted(data.iterdir())}


def _checksum(path: epath.Path) -> list[int]:
    """Returns [size, CRC-32] of a file; on an object store only the size, to read it once."""
    if is_bucket(path):
        return [path.stat().length]
    size = crc = 0
    with open_file(path) as file:
        while part := file.read(1 << 20):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]
