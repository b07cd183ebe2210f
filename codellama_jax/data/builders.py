"""Prepared documents: a TFDS dataset in ArrayRecord files, written once into a cache folder and read at random. No TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from codellama_jax.config import CorpusConfig
from codellama_jax.data import sources
from codellama_jax.errors import UserError

VERSION = "1.1.0"  # of what is kept and how it is cut; part of the name of the cache folder
CODE = ("code", "python")


@dataclass(frozen=True)
class Prepared:
    """Random access to the documents of a source: `train[i]` is {"id": bytes, "text": bytes}, both UTF-8."""

    train: Sequence[dict[str, bytes]]
    validation: Sequence[dict[str, bytes]]
    counts: dict[str, int]  # sources.COUNTS of the files, then the documents of each split
    fingerprint: str  # of all ids and texts of both splits, wherever they were prepared


def prepare(corpus: CorpusConfig, source: str, block_chars: int, cache_dir: epath.PathLike) -> Prepared:
    """Prepares the documents of `code`, `python`, `discussions` or `language`, or finds them prepared in `cache_dir` (local or gs://).

    Any number of processes may do so at once: each writes a folder of its own, and one small file, written last, names the
    folder that counts. Raises UserError if there is nothing to read or no room to write.
    """
    items = sources.sample(sources.find(getattr(corpus, source)), corpus.max_files)
    code = source in CODE
    made_of = [VERSION, code, block_chars, corpus.validation_fraction, [(item.id, item.stamp) for item in items]]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    name = re.sub(r"\W+", "-", getattr(corpus, source)).strip("-")[-40:]
    folder = epath.Path(cache_dir).expanduser() / f"{name}-{key}"
    try:
        if not (folder / "prepared.json").exists():
            _write(folder, *_documents(items, code, block_chars, corpus.validation_fraction))
        return _open(folder)
    except (OSError, ImportError, RuntimeError) as error:  # epath needs another package for gs://; TFDS wraps a full disk
        raise UserError(f"cannot prepare the corpus in {folder}: {getattr(error, 'strerror', None) or error}") from error


def _documents(items: list, code: bool, block_chars: int, fraction: float) -> tuple[dict[str, list], dict[str, int]]:
    files, counts = sources.load(items, code)
    if len(files) < 2:
        raise UserError(f"of the {len(items)} files of the corpus {len(files)} can be used: it takes one to train and one to validate")
    places = sorted((sources.position(file.id), file.id) for file in files)
    count = min(max(sum(place < fraction for place, _ in places), 1), len(files) - 1)
    held_out = {name for _, name in places[:count]}
    splits: dict[str, list] = {"train": [], "validation": []}
    for file in files:
        parts = sources.blocks(file.text, block_chars) if block_chars else [file.text]
        ids = [f"{file.id}#{i}" for i in range(len(parts))] if block_chars else [file.id]
        splits["validation" if file.id in held_out else "train"] += zip(ids, parts)
    return splits, counts | {split: len(documents) for split, documents in splits.items()}


def _write(folder: epath.Path, splits: dict[str, list], counts: dict[str, int]) -> None:
    attempt = folder / uuid.uuid4().hex
    try:
        builder = _builder(attempt, splits)
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
        draft = attempt / "prepared.json"
        fingerprint = hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16]
        path = str(builder.data_path.relative_to(folder))
        draft.write_text(json.dumps({"path": path, "counts": counts, "fingerprint": fingerprint}, indent=1))
        if (folder / "prepared.json").exists():  # another process was faster
            attempt.rmtree()
        else:
            draft.replace(folder / "prepared.json")
    except BaseException:
        attempt.rmtree(missing_ok=True)
        raise


def _builder(folder: epath.Path, splits: dict[str, list]) -> Any:
    """Returns what writes the (id, text) of each split. Importing TFDS takes a while, and most commands do not need it."""
    import tensorflow_datasets as tfds

    class Documents(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Documents with their ids, in the splits train and validation."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features, description=self.__doc__)

        def _split_generators(self, dl_manager: Any) -> dict:
            return {split: self._generate_examples(documents) for split, documents in splits.items()}

        def _generate_examples(self, documents: list) -> Any:
            return ((name, {"id": name, "text": text}) for name, text in documents)

    tfds.disable_progress_bar()
    return Documents(data_dir=folder)


def _open(folder: epath.Path) -> Prepared:
    import tensorflow_datasets as tfds

    prepared = json.loads((folder / "prepared.json").read_text())
    builder = tfds.builder_from_directory(folder / prepared["path"])
    return Prepared(*(builder.as_data_source(split) for split in ("train", "validation")), prepared["counts"], prepared["fingerprint"])
