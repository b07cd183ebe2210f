"""Packed rows of tokens as a pure function of the step, whatever the number of hosts.

Row r of the global batch is a lane: from each source it reads documents r, r + lanes, ... of an endless stream of shuffled
epochs, packs them, and keeps cursors of its own. A host computes the rows it owns and needs nothing from the others.

A batch holds int32 arrays [rows, T]: `tokens`, `targets` (the next token), `segment_ids` (1, 2, ...; 0 is padding),
`positions` (from 0 in each segment), `documents` (index in the source; -1 in padding), and `source` [rows], an index in
SOURCES; and float32 `weights` [rows, T], how much the loss of each target counts: 1, in padding 0.
A document longer than a row goes on in other rows, as segments of their own.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from codellama_jax.config import DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data.infilling import document_ids
from codellama_jax.data.shuffle import shuffled
from codellama_jax.errors import UserError

SOURCES = tuple(field.name for field in dataclasses.fields(MixtureConfig))
Batch = dict[str, np.ndarray]
Encoded = dict[str, np.ndarray]  # a document: see `encoder`


def source_of_row(row: int, shares: Sequence[float]) -> int:
    """Returns the index of the source that global row `step * batch_size + lane` reads from.

    Multiples of the golden ratio fill [0, 1) evenly, so that every run of rows, a batch or many, holds nearly the shares.
    """
    point = ((row * 0x9E3779B97F4A7C15) % 2**64 >> 11) / 2**53
    *bounds, total = itertools.accumulate(shares)
    return bisect.bisect(bounds, point * total)


def bins(seq_len: int) -> int:
    """Returns how many rows a lane packs at once: more of them waste less padding, and take longer to pack again after a resume.

    All lanes pack at about the same time; as many prefetched batches bridge it.
    """
    return min(max(16_384 // seq_len, 16), 64)


def lane_documents(
    documents: Sequence, encode: Callable, seed: int, lane: int, lanes: int
) -> grain.MapDataset:
    """Returns the endless documents of a lane; all lanes together read each document once an epoch, shuffled anew in every epoch.

    `encode(index, document)` is given `epoch * len(documents) + index of the document`.
    """
    encoded = grain.MapDataset.source(documents).map_with_index(encode)
    return shuffled(encoded, seed).repeat()[lane::lanes]


class Batches(Iterator[Batch], contextlib.AbstractContextManager):
    """An endless iterator over the rows `lanes` of each global batch of a stage, prefetched in a thread.

    `sources` maps names in SOURCES to random access to {"id", "text"}; one without a share is not touched. Close it when
    done, or use it in a `with` block. Raises UserError if a source that has a share is missing or empty.
    """

    def __init__(
        self,
        sources: dict[str, Sequence],
        data: DataConfig,
        tokenizer: Any,
        seed: int,
        lanes: Sequence[int],
    ):
        self._sources, self._lanes = sources, list(lanes)
        self._batches = _Prefetch(
            Rows(sources, data, tokenizer, seed, self._lanes), bins(data.seq_len)
        )
        self.close = weakref.finalize(
            self, self._batches.close
        )  # at the latest when the interpreter exits

    def __next__(self) -> Batch:
        return next(self._batches)

    def __exit__(self, *_: Any) -> None:
        self.close()

    def state(self) -> dict[str, Any]:
        """Returns the cursors of this host's lanes after the last batch handed out, by lane, ready for JSON."""
        return self._batches.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which `state` was taken, on any number of hosts: `state` may hold other hosts' lanes too.

        Raises UserError if it lacks a lane of this host.
        """
        missing = [lane for lane in self._lanes if str(lane) not in state]
        if missing:
            raise UserError(
                f"the checkpoint has no data cursor for row {missing[0]} of the batch: set batch_size to that of its run"
            )
        self._batches.set_state(state)

    def document_names(self, batch: Batch) -> list[str]:
        """Lists the ids of the documents in a batch, row by row."""
        rows = zip(batch["source"].tolist(), batch["documents"].tolist())
        places = dict.fromkeys(
            (source, i) for source, documents in rows for i in documents if i >= 0
        )
        return list(
            dict.fromkeys(_str(self._sources[SOURCES[source]][i]["id"]) for source, i in places)
        )


class Rows:
    """What Batches prefetches: the same batches and states, made when they are asked for."""

    def __init__(
        self,
        sources: dict[str, Sequence],
        data: DataConfig,
        tokenizer: Any,
        seed: int,
        lanes: Sequence[int],
    ):
        self._lanes, self._step, self._streams = lanes, 0, {}
        self._size, self._shares = data.batch_size, dataclasses.astuple(data.mixture)
        for name, documents in _with_share(sources, data).items():
            source = SOURCES.index(name)
            own_seed = int(np.random.SeedSequence([seed, source]).generate_state(1)[0])
            encode = encoder(tokenizer, data, own_seed, len(documents))
            for lane in lanes:
                read = lane_documents(documents, encode, own_seed, lane, data.batch_size)
                self._streams[lane, source] = _packed(read, data.seq_len, own_seed + (lane << 32))

    def __next__(self) -> Batch:
        sources = [
            source_of_row(self._step * self._size + lane, self._shares) for lane in self._lanes
        ]
        self._step += 1
        return _batch(
            [
                (source, next(self._streams[lane, source]))
                for lane, source in zip(self._lanes, sources)
            ]
        )

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            str(lane): {"step": self._step, "sources": {}} for lane in self._lanes
        }
        for (lane, source), stream in self._streams.items():
            state[str(lane)]["sources"][SOURCES[source]] = stream.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = state[str(self._lanes[0])]["step"]
        for (lane, source), stream in self._streams.items():
            stream.set_state(state[str(lane)]["sources"][SOURCES[source]])


def validation_batches(
    sources: dict[str, Sequence], data: DataConfig, tokenizer: Any, rows: int
) -> list[Batch]:
    """Packs `rows` rows of validation documents in the shares of the mixture, plain, once through, the same on every host.

    Batches hold `data.batch_size` rows, the last one what is left. A source that has no more documents drops out, so that
    there may be fewer rows. Raises UserError like Batches.
    """
    plain, streams = dataclasses.replace(data, infilling=InfillingConfig(rate=0.0)), {}
    for name, documents in _with_share(sources, data).items():
        encoded = grain.MapDataset.source(documents).map_with_index(
            encoder(tokenizer, plain, 0, len(documents))
        )
        streams[SOURCES.index(name)] = _packed(encoded, data.seq_len, 0)
    packed = list(itertools.islice(_mixed(streams, data), rows))
    return [_batch(packed[i : i + data.batch_size]) for i in range(0, len(packed), data.batch_size)]


def text_of(document: dict[str, bytes]) -> str:
    """Returns the text of what a data source holds."""
    return _str(document["text"])


def _with_share(sources: dict[str, Sequence], data: DataConfig) -> dict[str, Sequence]:
    names = [name for name in SOURCES if getattr(data.mixture, name) > 0]
    if not names:
        raise UserError(f"the mixture is empty: give one of {', '.join(SOURCES)} a share")
    for name in names:
        if not len(sources.get(name, ())):
            raise UserError(
                f"the mixture reads from {name!r}, which holds no documents: set its share to 0 or name it a folder of files"
            )
    return {name: sources[name] for name in names}


def encoder(tokenizer: Any, data: DataConfig, seed: int, count: int) -> Callable:
    """Returns the function from a document to its `ids` and `weights`.

    `ids` is int32 [length, 3]: token, next token, document. `weights` is float32 [length]: how much
    the loss of the next token counts.
    """

    def encode(index: int, document: dict) -> Encoded:
        epoch, i = divmod(index, count)
        rng = random.Random(
            f"{seed} {epoch} {i}"
        )  # whose numbers, unlike NumPy's, are the same in any version
        ids = np.array(
            document_ids(tokenizer, text_of(document), rng, data.infilling, data.seq_len), np.int32
        )
        length = len(ids) - 1
        columns = np.stack([ids[:-1], ids[1:], np.full(length, i, np.int32)], axis=1)
        return {"ids": columns, "weights": np.ones(length, np.float32)}

    return encode


def _packed(documents: grain.MapDataset, seq_len: int, seed: int) -> grain.DatasetIterator:
    direct = documents.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    chunks = grain.experimental.FlatMapIterDataset(direct, _Chunks(seq_len))
    rows = grain.experimental.FirstFitPackIterDataset(
        chunks,
        length_struct={"ids": seq_len, "weights": seq_len},
        num_packing_bins=bins(seq_len),
        seed=seed,
    )
    rows.has_child = True  # else Grain wraps the iterator's class once more each time, and many lanes exceed the recursion limit
    return rows.__iter__()


@dataclasses.dataclass(frozen=True)
class _Chunks(grain.experimental.FlatMapTransform):
    seq_len: int

    def flat_map(self, document: Encoded) -> list[Encoded]:
        starts = range(0, len(document["ids"]), self.seq_len)
        chunks = [slice(start, start + self.seq_len) for start in starts]
        return [{key: array[chunk] for key, array in document.items()} for chunk in chunks]


def _mixed(streams: dict[int, Iterator], data: DataConfig) -> Iterator[tuple[int, dict]]:
    """Draws (source, row) in the shares of the mixture until every stream has ended."""
    shares, rows = dataclasses.astuple(data.mixture), itertools.count()
    while streams:
        source = source_of_row(next(rows), shares)
        if row := next(streams.get(source, iter(())), None):
            yield source, row
        else:
            streams.pop(source, None)


def _batch(rows: list[tuple[int, dict]]) -> Batch:
    ids, segment_ids, positions = (
        np.stack([row[key] for _, row in rows])
        for key in ("ids", "ids_segment_ids", "ids_positions")
    )
    tokens, targets, documents = (np.ascontiguousarray(ids[..., i]) for i in range(3))
    source = np.array([source for source, _ in rows], np.int32)
    batch = {
        "tokens": tokens,
        "targets": targets,
        "segment_ids": segment_ids,
        "positions": positions,
        "weights": np.stack([row["weights"] for _, row in rows]),
    }
    return batch | {"documents": np.where(segment_ids > 0, documents, -1), "source": source}


def _str(text: bytes | str) -> str:
    return text if isinstance(text, str) else text.decode()


class _Prefetch(grain.experimental.ThreadPrefetchDatasetIterator):
    def close(self) -> None:
        if (
            not self._closed
        ):  # Grain's own closes again when the interpreter has taken its modules apart
            super().close()
