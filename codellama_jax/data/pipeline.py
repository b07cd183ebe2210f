"""Packed sequences of tokens: a pure function of the step, the same for any number of hosts.

Sequence i of every global batch belongs to lane i. From each source, lane i reads documents i,
i + lanes, i + 2 * lanes, ... of an endless stream of shuffled epochs, packs them into sequences and
keeps a cursor. A host computes only its own lanes and needs nothing from other hosts.

A batch holds these arrays, where B is the number of sequences and T the tokens per sequence:

- `tokens`, `targets`: int32 [B, T]; a target is the next token.
- `segment_ids`: int32 [B, T]; 1, 2, ... number the documents of a sequence, 0 is padding.
- `positions`: int32 [B, T]; counted from 0 in each segment.
- `documents`: int32 [B, T]; index of the document in its source, -1 in padding.
- `source`: int32 [B]; index of the source in the keys of `MixtureConfig.shares()`.
- `weights`: float32 [B, T]; weight of each target in the loss: 1, in padding 0, and 0 in the part
  of a function from which the other part is generated (`DataConfig.examples`) and in a conversation
  outside of the answers. Those of a pair are differences of scores: see `training.objectives`.

A document longer than a sequence continues in other sequences, as separate segments.

Attention and positions begin anew in every segment, and no token is predicted from the EOS of the
document before it. For a vocabulary without BOS these are the rules of CodeGeeX: attention mask and
positions are reset after each EOD, and the loss has weight 0 where the input token is EOD.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from codellama_jax.config import SOURCES, DataConfig, InfillingConfig
from codellama_jax.data.conversations import (
    completion_ids,
    conversation_ids,
    is_conversation,
    pair_ids,
    separate_pairs,
)
from codellama_jax.data.examples import CheckedEncoder
from codellama_jax.data.functions import example_ids, functions
from codellama_jax.data.infilling import document_ids
from codellama_jax.data.packed_infilling import infill_sequence
from codellama_jax.data.shuffle import shuffled
from codellama_jax.errors import UserError

GOLDEN_RATIO = 0x9E3779B97F4A7C15  # its fraction, times 2**64
Batch = dict[str, np.ndarray]
Encoded = dict[str, np.ndarray]  # a document: see `encoder`
Packed = dict[str, np.ndarray]  # a sequence of encoded documents, with Grain's names


def source_of_sequence(index: int, shares: Sequence[float]) -> int:
    """Returns the index of the source that sequence `index` reads from.

    `index` counts the sequences of a stage: `step * batch_size + lane`. Multiples of the golden
    ratio modulo 1 fill [0, 1) evenly, so that any consecutive sequences, within one batch or over
    many, have nearly the shares `shares`, which random numbers would reach only on average.
    """
    # 53 bits are the precision of a float: more would round up to 1 and exceed the last source.
    point = ((index * GOLDEN_RATIO) % 2**64 >> 11) / 2**53
    *bounds, total = itertools.accumulate(shares)
    return bisect.bisect(bounds, point * total)


def source_seed(seed: int, name: str) -> int:
    """Returns the PRNG seed of a source, so that sources of equal length differ in their order."""
    # Further sources are numbered by their names: adding one must not change the order of another.
    digest = hashlib.sha256(name.encode()).digest()
    number = SOURCES.index(name) if name in SOURCES else int.from_bytes(digest[:8], "big")
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def bins(seq_len: int) -> int:
    """Returns the number of packing bins per lane, which is also the number of batches prefetched.

    More bins waste less padding but slow down resuming, because a resume repacks them. All lanes
    finish their bins at about the same step; as many prefetched batches hide that pause.
    """
    return min(max(16_384 // seq_len, 16), 64)


def lane_documents(
    documents: Sequence, encode: Callable, seed: int, lane: int, lanes: int
) -> grain.MapDataset:
    """Returns the endless encoded documents of a lane.

    All lanes together read each document once per epoch, and every epoch has another order.

    Args:
        documents: random access to the documents of a source.
        encode: a function of `epoch * len(documents) + index` and the document at `index`.
        seed: the random seed of the order.
        lane: the index of the lane.
        lanes: the number of lanes of all hosts.
    """
    encoded = grain.MapDataset.source(documents).map_with_index(encode)
    # Lanes are taken from the endless stream, not from one epoch: no document is lost where the
    # number of documents is no multiple of the number of lanes.
    return shuffled(encoded, seed).repeat()[lane::lanes]


class Batches(Iterator[Batch], contextlib.AbstractContextManager):
    """An endless iterator over one host's part of each global batch, prefetched in a thread.

    Close it when done, or use it in a `with` block. Raises UserError if a source that has a share
    is missing or empty.

    Args:
        sources: random access to documents {"id", "text"} by the source's name in the mixture. A
            source without a share is not read.
        data: sequence length, global batch size, mixture and infilling.
        tokenizer: encodes the documents.
        seed: the random seed of order, infilling and packing.
        lanes: the indices of this host's sequences in the global batch.
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
        self._names = list(data.mixture.shares())
        # Packing and encoding run in a thread while the devices compute the step before.
        direct = DirectBatches(sources, data, tokenizer, seed, self._lanes)
        self._batches = _Prefetch(direct, bins(data.seq_len))
        # Closes at the latest when the interpreter exits.
        self.close = weakref.finalize(self, self._batches.close)

    def __next__(self) -> Batch:
        return next(self._batches)

    def __exit__(self, *_: Any) -> None:
        self.close()

    def state(self) -> dict[str, Any]:
        """Returns the cursors of this host by lane, after the last batch returned, as JSON."""
        return self._batches.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after the batch at which `state` was taken, on any number of hosts.

        `state` may also hold the lanes of other hosts. Raises UserError if it lacks one of this
        host's lanes.
        """
        missing = [lane for lane in self._lanes if str(lane) not in state]
        if missing:
            raise UserError(
                f"the checkpoint has no data cursor for sequence {missing[0]} of the batch:"
                " set batch_size to that of its run"
            )
        self._batches.set_state(state)

    def document_names(self, batch: Batch) -> list[str]:
        """Returns the ids of the documents in `batch`, each once, sequence by sequence."""
        names: dict[str, None] = {}  # a dict keeps the order of insertion
        sequences = zip(batch["source"].tolist(), batch["documents"].tolist())
        for source, documents in sequences:
            documents_of = self._sources[self._names[source]]
            # A document has many tokens: each index is read once.
            for index in dict.fromkeys(documents):
                if index >= 0:
                    names[_decoded(documents_of[index]["id"])] = None
        return list(names)


class DirectBatches:
    """The batches and states of `Batches`, each computed when it is read, without a thread.

    Args: as for `Batches`.
    """

    def __init__(
        self,
        sources: dict[str, Sequence],
        data: DataConfig,
        tokenizer: Any,
        seed: int,
        lanes: Sequence[int],
    ):
        self._lanes, self._step = lanes, 0
        self._tokenizer, self._infilling, self._seed = tokenizer, data.infilling, seed
        self._examples = data.examples
        shares = data.mixture.shares()
        self._batch_size, self._shares = data.batch_size, list(shares.values())
        self._names = list(shares)
        self._streams: dict[tuple[int, int], grain.DatasetIterator] = {}  # by lane and source
        for name, documents in _with_share(sources, data).items():
            source, order_seed = self._names.index(name), source_seed(seed, name)
            reasons: Counter[str] = Counter()
            encode = encoder(tokenizer, data, order_seed, len(documents), reasons)
            encode = CheckedEncoder(encode, name, data, len(documents), reasons)
            for lane in lanes:
                encoded = lane_documents(documents, encode, order_seed, lane, data.batch_size)
                # Grain emits filled bins in a random order, which differs between lanes by this
                # seed. The lane is in the upper bits, so that no two sources and lanes share a
                # seed.
                packing_seed = order_seed + (lane << 32)
                self._streams[lane, source] = _packed(encoded, data, packing_seed)

    def __next__(self) -> Batch:
        sequences = []
        for lane in self._lanes:
            # Every host computes the same source for a sequence, without communication.
            source = source_of_sequence(self._step * self._batch_size + lane, self._shares)
            sequence = next(self._streams[lane, source])
            if self._infilling.form == "starcoder" and self._infilling.rate:
                # A function of step and lane, so that a run resumes bit for bit.
                rng = random.Random(f"{self._seed} {self._step} {lane}")
                sequence = infill_sequence(self._tokenizer, sequence, rng, self._infilling)
            elif self._examples == "pairs":
                sequence = separate_pairs(sequence)
            sequences.append((source, sequence))
        self._step += 1
        return _batch(sequences)

    def get_state(self) -> dict[str, Any]:
        """Returns the step and the cursor of each source, by lane, as JSON."""
        state: dict[str, Any] = {}
        for lane in self._lanes:
            state[str(lane)] = {"step": self._step, "sources": {}}
        for (lane, source), stream in self._streams.items():
            state[str(lane)]["sources"][self._names[source]] = stream.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batch at which `get_state` returned `state`."""
        # All lanes are at the same step, also those that another host saved.
        self._step = state[str(self._lanes[0])]["step"]
        for (lane, source), stream in self._streams.items():
            stream.set_state(state[str(lane)]["sources"][self._names[source]])


def validation_batches(
    sources: dict[str, Sequence], data: DataConfig, tokenizer: Any, count: int
) -> list[Batch]:
    """Returns `count` sequences of validation documents in batches, the same on every host.

    Each document is read once, without infilling, in the shares of the mixture. A source without
    further documents drops out, so there may be fewer sequences. Every batch but the last holds
    `data.batch_size` sequences. Raises UserError like Batches.
    """
    plain = dataclasses.replace(data, infilling=InfillingConfig(rate=0.0))
    # One stream per source instead of one per lane: validation is the same for every batch size.
    streams, names = {}, list(data.mixture.shares())
    for name, documents in _with_share(sources, data).items():
        encode = encoder(tokenizer, plain, 0, len(documents))
        encoded = grain.MapDataset.source(documents).map_with_index(encode)
        streams[names.index(name)] = _packed(encoded, data, 0)
    sequences = list(itertools.islice(_mixed(streams, data), count))
    if data.examples == "pairs":
        sequences = [(source, separate_pairs(sequence)) for source, sequence in sequences]
    starts = range(0, len(sequences), data.batch_size)
    return [_batch(sequences[start : start + data.batch_size]) for start in starts]


def text_of(document: dict[str, bytes]) -> str:
    """Returns the text of a document of a data source."""
    return _decoded(document["text"])


def _with_share(sources: dict[str, Sequence], data: DataConfig) -> dict[str, Sequence]:
    """Returns the sources with a share. Raises UserError if one of them has no documents."""
    shares = data.mixture.shares()
    names = [name for name, share in shares.items() if share > 0]
    if not names:
        raise UserError(f"the mixture is empty: give one of {', '.join(shares)} a share")
    for name in names:
        if not len(sources.get(name, ())):
            raise UserError(
                f"the mixture reads from {name!r}, which holds no documents:"
                " set its share to 0 or name it a folder of files"
            )
    return {name: sources[name] for name in names}


def encoder(
    tokenizer: Any,
    data: DataConfig,
    seed: int,
    count: int,
    reasons: Counter[str] | None = None,
) -> Callable:
    """Returns the function that encodes a document of a source of `count` documents.

    It returns `ids`, int32 [length, 3] (token, next token, index of the document), and `weights`,
    float32 [length], the weight of each next token in the loss. With `data.examples` of functions
    it returns `examples`, a list of such dicts; those longer than a sequence are left out.

    Args:
        tokenizer: of the model.
        data: how documents become examples.
        seed: of the random splits.
        count: the number of documents of the source.
        reasons: counts why conversations and pairs are refused.
    """

    def encode(index: int, document: dict) -> Encoded:
        # The index counts on through the epochs: see `lane_documents`.
        epoch, document_index = divmod(index, count)
        # Each epoch splits a document at other positions. The numbers of random.Random, unlike
        # NumPy's, are the same in every version, so that a run resumes bit for bit.
        rng = random.Random(f"{seed} {epoch} {document_index}")
        text = text_of(document)
        if data.chat and is_conversation(text):
            ids, weights = conversation_ids(tokenizer, text, data.chat, reasons)
            return _encoded(ids, document_index, weights=weights)
        ids = document_ids(tokenizer, text, rng, data.infilling, data.seq_len)
        return _encoded(ids, document_index)

    def encode_functions(index: int, document: dict) -> dict[str, list[Encoded]]:
        document_index, examples = index % count, []
        for function in functions(text_of(document)):
            ids, given = example_ids(tokenizer, function, data.examples)
            if len(ids) <= data.seq_len + 1:
                examples.append(_encoded(ids, document_index, given))
        return {"examples": examples}

    def encode_pair(index: int, document: dict) -> dict[str, list[Encoded]]:
        document_index = index % count
        answers: list[Encoded] = []
        # Both answers are one packed item: in separate sequences they could not be compared in the
        # loss.
        for ids, weights in pair_ids(tokenizer, text_of(document), data.chat, reasons):
            # The second answer has the marks by which `separate_pairs` finds it.
            number = ~document_index if answers else document_index
            answers.append(_encoded(ids, number, weights=weights))
        # Truncated answers could not be compared.
        if not answers or sum(len(answer["ids"]) for answer in answers) > data.seq_len:
            return {"examples": []}
        chosen, rejected = answers
        pair = {key: np.concatenate([chosen[key], rejected[key]]) for key in chosen}
        return {"examples": [pair]}

    def encode_completion(index: int, document: dict) -> dict[str, list[Encoded]]:
        ids, given = completion_ids(tokenizer, text_of(document))
        is_short = 0 < len(ids) <= data.seq_len + 1
        return {"examples": [_encoded(ids, index % count, given)] if is_short else []}

    if data.examples == "pairs":
        return encode_pair
    if data.examples == "completions":
        return encode_completion
    return encode if data.examples == "documents" else encode_functions


def _encoded(
    ids: Sequence[int], document: int, given: int = 1, weights: Sequence[float] = ()
) -> Encoded:
    """Returns ids and loss weights of a document, ready to be packed.

    Args:
        ids: of the document; none for one that is left out.
        document: its index, the third column.
        given: the number of ids at the start that are not learned.
        weights: of each id, instead of `given`.
    """
    ids_T = np.array(ids, np.int32)
    document_indices = np.full(max(0, len(ids_T) - 1), document, np.int32)
    # Targets are shifted by one: the first id is no target.
    weights_T = np.array(weights or np.ones(len(ids_T)), np.float32)[1:]
    # Target j is id j + 1, so that the first `given` ids are the first `given - 1` targets.
    weights_T[: max(0, given - 1)] = 0
    return {
        "ids": np.stack([ids_T[:-1], ids_T[1:], document_indices], axis=1),
        "weights": weights_T,
    }


def _packed(documents: grain.MapDataset, data: DataConfig, seed: int) -> grain.DatasetIterator:
    """Returns an iterator over encoded documents, packed into sequences of `seq_len` tokens."""
    seq_len = data.seq_len
    # Without Grain's own threads: there would be one pool per lane and source.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    # A document may continue in another sequence; an example makes no sense in two parts.
    parts = _Chunks(seq_len) if data.examples == "documents" else _Examples()
    chunks = grain.experimental.FlatMapIterDataset(documents.to_iter_dataset(options), parts)
    sequences = grain.experimental.FirstFitPackIterDataset(
        chunks,
        length_struct={"ids": seq_len, "weights": seq_len},
        num_packing_bins=bins(seq_len),
        seed=seed,
    )
    # Otherwise Grain wraps the class of the iterator once more for each lane, and many lanes exceed
    # the recursion limit.
    sequences.has_child = True
    return iter(sequences)


@dataclasses.dataclass(frozen=True)
class _Chunks(grain.experimental.FlatMapTransform):
    """Splits an encoded document into chunks of at most `seq_len` tokens."""

    seq_len: int

    def flat_map(self, document: Encoded) -> list[Encoded]:
        chunks = []
        for start in range(0, len(document["ids"]), self.seq_len):
            end = start + self.seq_len
            chunks.append({key: array[start:end] for key, array in document.items()})
        return chunks


@dataclasses.dataclass(frozen=True)
class _Examples(grain.experimental.FlatMapTransform):
    """Separates the examples of an encoded document."""

    def flat_map(self, document: dict[str, list[Encoded]]) -> list[Encoded]:
        return document["examples"]


def _mixed(streams: dict[int, Iterator], data: DataConfig) -> Iterator[tuple[int, Packed]]:
    """Yields (source, sequence) in the shares of the mixture until every stream has ended."""
    shares = list(data.mixture.shares().values())
    for index in itertools.count():
        if not streams:
            return
        source = source_of_sequence(index, shares)
        # The turns of an ended source are skipped, so that the others keep their proportions.
        if source not in streams:
            continue
        try:
            sequence = next(streams[source])
        except StopIteration:
            del streams[source]
        else:
            yield source, sequence


def _batch(sequences: list[tuple[int, Packed]]) -> Batch:
    """Returns the batch of these (source, sequence)."""
    stacked = {}
    for key in ("ids", "ids_segment_ids", "ids_positions", "weights"):
        stacked[key] = np.stack([sequence[key] for _, sequence in sequences])
    # Contiguous, because each of the three is transferred to the devices as an array.
    tokens, targets, documents = (
        np.ascontiguousarray(stacked["ids"][..., column]) for column in range(3)
    )
    segment_ids = stacked["ids_segment_ids"]
    return {
        "tokens": tokens,
        "targets": targets,
        "segment_ids": segment_ids,
        "positions": stacked["ids_positions"],
        "weights": stacked["weights"],
        # Grain pads with 0, which is also the index of a document.
        "documents": np.where(segment_ids > 0, documents, -1),
        "source": np.array([source for source, _ in sequences], np.int32),
    }


def _decoded(text: bytes | str) -> str:
    return text if isinstance(text, str) else text.decode()


class _Prefetch(grain.experimental.ThreadPrefetchDatasetIterator):
    """Grain's prefetching thread, which may be closed twice."""

    def close(self) -> None:
        # Grain's method closes again at the exit of the interpreter, when the modules that it
        # needs no longer exist.
        if not self._closed:
            super().close()
