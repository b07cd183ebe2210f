"""Random access to the documents of a prepared corpus of any size, with little memory.

Shards are opened when a document in them is read, and only a few stay open: an open shard keeps its
index, about 10 bytes per document, in memory. (ArrayRecord can leave the index in the file, but
then decompresses it for every read, which takes 8 ms instead of 0.25 ms.)
"""

from __future__ import annotations

import bisect
import itertools
import random
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

from etils import epath
from google.protobuf.message import DecodeError

from codellama_jax.errors import UserError
from codellama_jax.system.files import reason

FIELDS = ("id", "text")  # of a document that are read
OPEN_SHARDS = 32  # of a split; each is an open file
OPEN_DOCUMENTS = 2_000_000  # in the open shards of a split; their index takes about 20 MB
# Without readahead and threads, as ArrayRecord's documentation recommends for random access.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READER_BYTES = 32_768  # of a file that are read at once
SAMPLE_SEED = 0
SAMPLE_AT_ONCE = 1024  # documents of a sample that are read in the order of the shards
AGAIN = "run the same `codellama-jax prepare` command again, or copy the folder again"
# `prepare` itself repairs only files that are missing or have another size.
REPLACE = f"delete this file, then {AGAIN}"


class Shard(NamedTuple):
    """A file with documents of a split."""

    path: epath.Path
    documents: int


class ShardedDocuments(Sequence):
    """The documents of a split: `documents[i]` is {"id": bytes, "text": bytes}.

    Any number of threads may read. Raises UserError that names the shard and the record where a
    file is missing or damaged.
    """

    def __init__(self, split: str, shards: Sequence[Shard]):
        """Takes the name of the split, for messages, and its shards in order."""
        self._split, self._shards = split, list(shards)
        self._ends = list(itertools.accumulate(shard.documents for shard in self._shards))
        self._readers: OrderedDict[int, Any] = OrderedDict()  # by shard, last used at the end
        self._open_documents = 0
        # Held while a record is read: a reader must not be closed meanwhile.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> dict[str, bytes]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, bytes]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        # `_ends` ascends: the first end above `index` is that of its shard.
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        record = index - self._ends[number] + shard.documents
        try:
            with self._lock:
                data = self._reader(number).read([record])[0]
            return _decoded(data)
        except (DecodeError, RuntimeError, ValueError, IndexError, OSError) as error:
            place = f"record {record:,} of {shard.path} (document {index:,} of {self._split})"
            raise UserError(f"{place} is damaged ({reason(error)}): {REPLACE}") from error

    def _reader(self, number: int) -> Any:
        """Returns the open reader of a shard; closes those that were not used for longest."""
        from array_record.python.array_record_module import ArrayRecordReader

        if number in self._readers:
            self._readers.move_to_end(number)
            return self._readers[number]
        shard = self._shards[number]
        # Before the new one is opened, so that the bounds hold with it included.
        while self._readers and (
            len(self._readers) >= OPEN_SHARDS
            or self._open_documents + shard.documents > OPEN_DOCUMENTS
        ):
            closed, oldest = self._readers.popitem(last=False)
            oldest.close()
            self._open_documents -= self._shards[closed].documents
        reader = ArrayRecordReader(
            str(shard.path), options=READER_OPTIONS, file_reader_buffer_size=READER_BYTES
        )
        # ArrayRecord opens an absent or truncated file as one without records.
        if reader.num_records() != shard.documents:
            # Not closed here: the reader of a damaged file raises its fault again.
            expected = f"holds {reader.num_records():,} documents instead of {shard.documents:,}"
            raise UserError(f"{shard.path} {expected}: {REPLACE}")
        # Counted last: a shard that could not be opened, and is tried again, counts nothing.
        self._open_documents += shard.documents
        self._readers[number] = reader
        return reader


def _decoded(data: bytes) -> dict[str, bytes]:
    """Returns the id and the text of a serialized tf.train.Example."""
    # TFDS takes seconds to import: only where documents are read. Its own decoder also checks the
    # types of all features, which takes several times as long.
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(data).features.feature
    return {name: features[name].bytes_list.value[0] for name in FIELDS}


def sample(documents: Sequence[dict[str, bytes]], most_characters: int) -> list[str]:
    """Returns texts of pseudo-random documents, each once, until they have `most_characters`.

    The last text may exceed the bound. Returns all texts if they have fewer characters. Only the
    documents that are returned are read.
    """
    rng = random.Random(SAMPLE_SEED)
    texts: list[str] = []
    characters, chosen = 0, set[int]()
    # Drawn without reading: the length of a document is known only after it is read, so that
    # indices are drawn in rounds until there are enough characters.
    while characters < most_characters and len(chosen) < len(documents):
        for index in sorted(_draw(rng, len(documents), chosen)):
            chosen.add(index)
            texts.append(documents[index]["text"].decode())
            characters += len(texts[-1])
            if characters >= most_characters:
                break
    return texts


def _draw(rng: random.Random, count: int, chosen: set[int]) -> set[int]:
    """Returns up to SAMPLE_AT_ONCE new indices below `count`, at least one."""
    # Of few documents all that are left: drawing the last of them would take long.
    if count - len(chosen) <= SAMPLE_AT_ONCE:
        return set(range(count)) - chosen
    new: set[int] = set()
    while len(new) < SAMPLE_AT_ONCE:
        index = rng.randrange(count)
        if index not in chosen:
            new.add(index)
    return new
