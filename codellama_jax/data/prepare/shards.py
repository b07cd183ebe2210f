"""Writes ArrayRecord shards of bounded size, and the metadata by which TFDS reads them."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

DATASET = "documents"
VERSION = "2.0.0"
FEATURES = ("id", "text", "path", "language", "repository", "license", "source")
COPY_BYTES = 1 << 20
# The layout that TFDS writes: one compressed chunk per record, for random access.
WRITER_OPTIONS = "group_size:1"


class ShardWriter:
    """Writes examples to shards of at most `shard_bytes` of text; `shards` describes them.

    A shard is written to a temporary file of this machine and copied to `PREFIX-0`, `PREFIX-1`, ...
    when it is complete. A longer document gets its own shard.
    """

    def __init__(self, prefix: epath.Path, shard_bytes: int):
        """Takes the path of the shards without their number, and the limit."""
        # Imported here, because it takes a second and only writers of shards need it.
        from tensorflow_datasets.core import example_serializer

        self.shards: list[dict[str, Any]] = []
        self._prefix, self._shard_bytes = prefix, shard_bytes
        self._features = features()
        info = self._features.get_serialized_info()
        self._serializer = example_serializer.ExampleSerializer(info)
        self._writer: Any = None
        self._temporary = tempfile.TemporaryDirectory(prefix="shard-")
        self._documents = self._size = self._characters = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None and self._writer:
                self._finish()
        finally:
            self._temporary.cleanup()

    def write(self, example: Mapping[str, str]) -> None:
        """Adds a document with the fields FEATURES."""
        size = len(example["text"].encode())
        if self._writer and self._size + size > self._shard_bytes:
            self._finish()
        if not self._writer:
            from array_record.python.array_record_module import ArrayRecordWriter

            self._writer = ArrayRecordWriter(str(self._local()), WRITER_OPTIONS)
        encoded = self._features.encode_example(dict(example))
        self._writer.write(self._serializer.serialize_example(encoded))
        self._documents += 1
        self._size += size
        self._characters += len(example["text"])

    def _local(self) -> Path:
        return Path(self._temporary.name) / "shard"

    def _finish(self) -> None:
        """Closes the shard, copies it under its name and describes it."""
        self._writer.close()
        name = f"{self._prefix.name}-{len(self.shards)}"
        checksum = copy_file(self._local(), self._prefix.with_name(name))
        self.shards.append(
            {
                "name": name,
                "documents": self._documents,
                "characters": self._characters,
                "bytes": self._local().stat().st_size,
                "sha256": checksum,
            }
        )
        self._writer = None
        self._documents = self._size = self._characters = 0


def copy_file(source: Path, target: epath.Path) -> str:
    """Copies a local file under a name at which it appears complete; returns its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    digest = hashlib.sha256()
    try:
        with source.open("rb") as original, temporary.open("wb") as copy:
            while block := original.read(COPY_BYTES):
                digest.update(block)
                copy.write(block)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def features() -> Any:
    """Returns the TFDS features of a document."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in FEATURES})


def shard_name(split: str, index: int, count: int) -> str:
    """Returns the file name that TFDS expects of a shard."""
    return f"{DATASET}-{split}.array_record-{index:05d}-of-{count:05d}"


def write_metadata(folder: epath.Path, splits: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Writes `dataset_info.json` and `features.json` of the shards of each split."""
    from tensorflow_datasets.core import dataset_info, naming, utils
    from tensorflow_datasets.core import splits as tfds_splits

    infos = []
    for split, shards in splits.items():
        template = naming.ShardedFileTemplate(
            data_dir=folder, dataset_name=DATASET, split=split, filetype_suffix="array_record"
        )
        lengths = [shard["documents"] for shard in shards]
        size = sum(shard["bytes"] for shard in shards)
        infos.append(tfds_splits.SplitInfo(split, lengths, size, template))
    identity = dataset_info.DatasetIdentity(
        name=DATASET,
        version=utils.Version(VERSION),
        data_dir=folder,
        module_name="",
        config_name="",
        config_description="",
        config_tags=[],
        release_notes={},
    )
    info = dataset_info.DatasetInfo(
        builder=identity,
        description="Documents of a training corpus, filtered and without duplicates.",
        features=features(),
    )
    info.set_file_format("array_record")
    info.set_splits(tfds_splits.SplitDict(infos))
    info.write_to_directory(folder)
