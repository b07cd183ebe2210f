"""Continuous batching: sequences join and leave a batch of fixed size while it is being decoded.

The batch has slots. Requests wait in a queue; each takes a free slot at the next boundary between
two chunks of decoding steps, and gives it back when it ends. Prompts of similar length are read
together. A prompt that begins as one that a slot holds copies its keys and values and reads the
rest (`prefixes.py`); one that begins as a prompt that is being read waits for it. So equal prompts
are read once. A prompt longer than a piece is read in several: while sequences stream, a call of
`advance` reads no more than a piece of one prompt, or some short ones.

The ids of a request depend on the request alone, not on the others nor on when it joins: as in
`sampler.generate`, logits may differ in their last bits where another shape is compiled, as where a
prefix is copied, and every draw has its own PRNG key. Prefixes are copied for equal prompts only
where that would change more than last bits: an int8 cache, to which a prompt attends before it is
rounded, and RoPE that depends on the prompt's length. All decisions follow from the requests and
the ids drawn, so that several hosts that share a model take the same ones without talking.

A model with a drafter draws several tokens per step where drafts are right (`drafts.py`).

    engine = Engine(model, slots=64)
    names = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        for update in engine.advance():
            ...

Dims: as in `slots.py`.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter, deque
from collections.abc import Iterator, Sequence

import numpy as np

from codellama_jax.errors import UserError
from codellama_jax.generation import slots as programs
from codellama_jax.generation.batches import bucket, check_prompt
from codellama_jax.generation.device import Device
from codellama_jax.generation.drafts import Drafter
from codellama_jax.generation.drawing import Draws
from codellama_jax.generation.prefixes import BLOCK, Match, Prefixes
from codellama_jax.generation.requests import READ_TOKENS, Request, Running, Update, groups
from codellama_jax.generation.slot_draws import MAX_STOP_IDS, SlotDraws
from codellama_jax.models import decoding
from codellama_jax.models.family import family_of
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import on_mesh_of

# Steps per chunk. Every chunk costs a round trip to the device, and tokens drawn after the end of a
# sequence are wasted: `stop` is called only between chunks, stop ids are found on the device.
CHUNK_WITH_STOP = 16
CHUNK_STREAMED = 4
# While requests wait, a chunk ends once this share of the slots is done.
DONE_SHARE = 8
# Tokens of a piece of a prompt. Prompts of most benchmarks are one piece.
PIECE = 8192


class Engine:
    """Generates after prompts that come and go.

    It has no thread: `advance` does the work. `submit`, `cancel` and `advance` may not be called at
    the same time.

    Attributes:
      slots: sequences that are decoded at once.
      widths: how many slots a step may compute, ascending. With `least`, for which a server
        compiles the programs before it is ready, few sequences are decoded without the other slots,
        and short ones without the other positions.
      counts: tokens of prompts that were read and that were reused, prompts read and slots copied,
        chunks, and steps; a step computes one token of every slot, or those of a draft.
    """

    def __init__(
        self,
        model: TrainedModel,
        slots: int,
        vocab: int | None = None,
        least: int = 0,
        *,
        piece: int = PIECE,
        prefix_cache: bool = True,
    ) -> None:
        """Prepares the weights. Raises UserError where they do not fit in memory.

        Args:
          model: the model. Its decoding weights are prepared by the first engine.
          slots: sequences at once; more where the mesh's data axis does not divide them.
          vocab: ids from here on, which pad the vocabulary, are never drawn.
          least: positions that the cache has at least. A server gives the most that it allows, so
            that no request makes the cache longer and its programs compile again.
          piece: tokens of a prompt that are read at once, at most. Prompts are read at once where
            the mesh shards their length, and where RoPE depends on it.
          prefix_cache: whether prompts that only begin alike are copied as well.
        """
        self.model, self._device = model, Device(model, slots, least > 0)
        self.slots, self.counts = self._device.slots, self._device.counts
        self.widths = self._device.widths
        depends_on_length = family_of(model.config).depends_on_length(model.config)
        # Two prompts with a common beginning have equal keys and values there only if a position's
        # result does not depend on later tokens (RoPE scaled by the prompt's length breaks this),
        # and if the cache holds exactly the values that prefill attended to (an int8 cache is
        # rounded afterwards).
        is_shared = prefix_cache and not depends_on_length and model.kv_cache == "none"
        self._prefixes = Prefixes(self.slots, is_shared)
        # 0 turns splitting off: the first piece cannot know the length of the full prompt.
        self._piece = 0 if depends_on_length or self._device.is_length_split else piece
        self._least = least
        # From here on every choice is host code over plain Python state. Hosts that share a model
        # run it in lockstep, so it must depend on nothing but the requests and the ids drawn.
        self._draws = SlotDraws(self.slots, vocab or model.config.vocab_size)
        self._submitted = 0
        self._waiting: deque[Running] = deque()
        self._prompts: Counter[bytes] = Counter()  # of the waiting requests
        # By slot: sequences whose prompts are being read, have been read, and that are decoded.
        self._reading: dict[int, Running] = {}
        self._ready: dict[int, Running] = {}
        self._running: dict[int, Running] = {}
        self._updates: list[Update] = []  # since `advance` returned last

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._waiting and not self._reading and not self._running

    def submit(self, request: Request, name: str = "the prompt") -> int:
        """Queues a request and returns its id.

        Raises UserError, with the name of the prompt, for one that is empty, too long, or of
        another vocabulary.
        """
        check_prompt(self.model.config, request.prompt, request.sampling.max_new_tokens, name)
        if len(request.stop_ids) > MAX_STOP_IDS:
            raise ValueError(f"{len(request.stop_ids)} stop ids: at most {MAX_STOP_IDS} are found")
        if request.sampling.beams > 1:
            raise ValueError("the engine draws tokens; beam.py searches")
        sequence = Running(self._submitted, request)
        self._submitted += 1
        self._wait(sequence, is_last=True)
        return sequence.id

    def cancel(self, request: int) -> bool:
        """Ends a request without further updates. Its slot is free for the next chunk.

        Returns whether it was waiting or running.
        """
        for sequence in self._waiting:
            if sequence.id == request:
                self._leave_queue(sequence)
                return True
        # `_ready` needs no search: `_join` empties it before `advance` returns, or an error does.
        for sequences in (self._reading, self._running):
            for slot, sequence in sequences.items():
                if sequence.id == request:
                    del sequences[slot]
                    self._keep(slot, sequence)
                    return True
        return False

    def holds(self, request: int) -> bool:
        """Returns whether a request waits, runs, or has an update that is still to be returned."""
        sequences = (*self._waiting, *self._reading.values(), *self._running.values())
        ids = {sequence.id for sequence in sequences}
        return request in ids or any(update.request == request for update in self._updates)

    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        """Returns the new ids of every request, in order. See `advance` for what it raises."""
        new: dict[int, list[int]] = {}
        for index, ids in self.each(requests):
            new[index] = ids
        return [new[index] for index in range(len(requests))]

    def each(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
        """Yields the index and all new ids of each request as it ends. The engine must be idle."""
        # Ids count up without gaps, so an idle engine lets an id minus `first` be an index.
        assert self.is_idle
        first = self._submitted
        new: list[list[int]] = [[] for _ in requests]
        for index, request in enumerate(requests):
            self.submit(request, f"prompt {index}")
        while not self.is_idle:
            for update in self.advance():
                new[update.request - first] += update.ids
                if update.is_finished:
                    yield update.request - first, new[update.request - first]

    def advance(self) -> list[Update]:
        """Fills free slots from the queue, reads prompts, runs one chunk, and returns the new ids.

        Raises UserError where memory does not suffice; of the requests that were to join the
        longest is dropped, and the others continue with the next call.
        """
        # Reading comes before decoding, so that a request that just got a slot takes part in this
        # chunk.
        with on_mesh_of(self.model.params, decoding.LOGICAL_AXES):
            self._join()
            if self._running:
                self._decode()
        updates, self._updates = self._updates, []
        return updates

    def _join(self) -> None:
        """Starts waiting requests until no slot is free, none waits, or enough has been read."""
        self._place()
        sequences = (*self._running.values(), *self._reading.values())
        is_streamed = any(sequence.request.on_tokens for sequence in sequences)
        # Someone watches a sequence grow: reading all prompts at once would stop its tokens for
        # seconds. Without such a reader only throughput counts, and larger batches of prompts are
        # faster.
        is_bounded = is_streamed and self._piece > 0
        left: float = self._piece if is_bounded else math.inf
        while True:
            while self._reading and left > 0:
                left -= self._read(self._piece if is_bounded else READ_TOKENS)
                # Those that waited for these prompts.
                self._place()
            # Nothing left to read within this call's budget, or no slot was free.
            if not self._ready:
                return
            # Starting a sequence may end it at once (one token, or a stop id first), which frees a
            # slot that the next waiting request takes in the same call.
            self._start()
            self._place()

    def _place(self) -> None:
        """Gives free slots to waiting requests, and copies what slots hold of their prompts.

        It ends before a request that will share more with a prompt which is still being read.
        """
        # A slot belongs to exactly one of the three dicts, or to none when it is free.
        taken = self._running.keys() | self._reading.keys() | self._ready.keys()
        free = [slot for slot in range(self.slots) if slot not in taken]
        # First come, first served: the cache grows for all that could join, before any of them
        # does.
        joining = list(itertools.islice(self._waiting, len(free)))
        if not joining:
            return
        try:
            self._resize(joining)
        except UserError:
            self._drop_longest(joining)
            raise
        # Prompts being read in full, by content: an equal one waits for it and is copied
        # afterwards.
        keys = {sequence.key for sequence in self._reading.values()}
        copies: dict[int, tuple[int, int]] = {}
        for sequence in joining:
            match = self._match(sequence)
            # A prompt that is being read will share at least a block more than any slot holds
            # today. Waiting for it costs one round of reading; reading the same tokens twice costs
            # more.
            is_promised = match.promised >= match.length + BLOCK or sequence.key in keys
            if is_promised and match.length < len(sequence.prompt):
                break
            # Requests behind one that waits stay in the queue as well, which keeps the order of
            # arrival.
            self._leave_queue(sequence)
            self._assign(sequence, match, free, copies)
            if sequence.read < len(sequence.prompt):
                keys.add(sequence.key)
        if copies:
            self._device.copy(copies)

    def _match(self, sequence: Running) -> Match:
        """Returns the slot that shares the most with a prompt: all of it, logits included, or less
        than that."""
        slot = self._prefixes.slot_with(sequence.key)
        if slot >= 0:
            return Match(slot, len(sequence.prompt), 0)
        return self._prefixes.match(sequence.ids)

    def _assign(
        self,
        sequence: Running,
        match: Match,
        free: list[int],
        copies: dict[int, tuple[int, int]],
    ) -> None:
        """Gives a slot to a sequence.

        Args:
          sequence: the sequence.
          match: what it shares with a slot.
          free: the free slots; the one that it takes is removed.
          copies: by target, the source and the length of the copies that are due; one is added
            where the slot does not hold what it shares.
        """
        # The slot may be the one that already holds the prompt's beginning: then nothing is copied.
        slot = self._prefixes.choose(free, sequence.key, match, self._prompts)
        free.remove(slot)
        if match.slot >= 0:
            self._prefixes.touch(match.slot)
            is_held = self._prefixes.holds_prompt(slot, sequence.key)
            if slot != match.slot and not is_held:
                # All copies read before any writes: what is still to be copied is at its source.
                source, _ = copies.get(match.slot, (match.slot, 0))
                copies[slot] = source, match.length
        sequence.begin(match.length, self._piece)
        self.counts["prompt tokens reused"] += match.length
        # An update without ids: the caller learns that the request has left the queue.
        self._updates.append(Update(sequence.id, [], False, match.length))
        self._note_read(slot, sequence)

    def _read(self, most: int) -> int:
        """Reads pieces of prompts, at most about `most` tokens, and returns how many.

        Those of which the fewest pieces have been read come first: no long prompt makes others
        wait until all of it is read.
        """
        # Round robin over pieces, like a fair scheduler: a prompt of 100,000 tokens gets one turn,
        # then the short prompts that came after it get theirs.
        fewest = min(sequence.pieces for sequence in self._reading.values())
        # First pieces are another program than later ones.
        by_kind: dict[bool, list[tuple[Running, int]]] = {False: [], True: []}
        for slot, sequence in self._reading.items():
            if sequence.pieces == fewest:
                by_kind[sequence.read > 0].append((sequence, slot))
        # First pieces go first because they are prompts that have not begun at all.
        group = next(groups(by_kind[False] or by_kind[True], self._device.shards, most))
        try:
            self._device.read(group, self._piece)
        except UserError:
            # The group alone does not fit in memory even after it was halved down to one prompt.
            self._drop_longest([*self._reading.values(), *self._ready.values()])
            raise
        tokens = 0
        for sequence, slot in group:
            tokens += sequence.stop - sequence.read
            sequence.next_piece(self._piece)
            del self._reading[slot]
            self._note_read(slot, sequence)
        return tokens

    def _note_read(self, slot: int, sequence: Running) -> None:
        """Notes how much of a prompt is in its slot."""
        # Logits exist only after the last token of a prompt, so that only a complete prompt gets a
        # key.
        is_complete = sequence.read == len(sequence.prompt)
        key = sequence.key if is_complete else b""
        self._prefixes.hold(slot, sequence.ids, sequence.read, key)
        (self._ready if is_complete else self._reading)[slot] = sequence

    def _start(self) -> None:
        """Draws the first tokens of sequences whose prompts have been read or copied."""
        for slot, sequence in self._ready.items():
            self._draws.set(slot, sequence.request)
        # One program draws for all slots. Slots that do not start keep their tokens and positions.
        starting, self._ready = self._ready, {}
        self._running |= starting
        tokens_B = self._device.start(starting, self._current_draws())
        self._add({slot: tokens_B[slot : slot + 1] for slot in starting})

    def _drop_longest(self, candidates: Sequence[Running]) -> None:
        """Lets sequences that have not started wait again, and drops the longest candidate."""
        # The longest sequence decides the length of the cache, so dropping it frees the most
        # memory.
        dropped = max(candidates, key=operator.attrgetter("end"))
        started = {**self._reading, **self._ready}
        self._reading, self._ready = {}, {}
        for slot, sequence in started.items():
            self._keep(slot, sequence)
        # Each goes to the front, so the highest id must be first for the queue to be in order
        # again.
        for sequence in sorted(started.values(), key=operator.attrgetter("id"), reverse=True):
            self._wait(sequence, is_last=False)
        self._leave_queue(dropped)
        # The caller learns of the drop from the exception, not from an update of a dead request.
        self._updates = [update for update in self._updates if update.request != dropped.id]

    def _decode(self) -> None:
        """Checks drafts, or runs a chunk of steps where there are none."""
        drafter = self.model.drafter
        if drafter and self._check_drafts(drafter):
            return
        requests = [sequence.request for sequence in self._running.values()]
        # Longer chunks save round trips to the device. They cost tokens drawn after a stop string,
        # which only the host finds, and the delay until streamed tokens appear.
        steps = programs.CHUNK
        if any(request.stop for request in requests):
            steps = CHUNK_WITH_STOP
        # With a drafter the chunk is short too: the text may soon repeat itself and have a draft.
        if drafter or any(request.on_tokens for request in requests):
            steps = CHUNK_STREAMED
        done_B = np.ones(self.slots, bool)
        done_B[list(self._running)] = False
        # Without a queue nobody could use a slot that ends early, so the chunk runs to its last
        # step.
        most_done = self.slots
        if self._waiting:
            most_done = int(done_B.sum()) + max(1, self.slots // DONE_SHARE)
        needed = 0
        for sequence in self._running.values():
            position = len(sequence.prompt) + len(sequence.new)
            needed = max(needed, min(position + steps, sequence.end))
        new_BT = self._device.decode(self._current_draws(), done_B, steps, most_done, needed)
        self._add({slot: new_BT[slot] for slot in self._running})

    def _check_drafts(self, drafter: Drafter) -> bool:
        """Draws tokens with drafts. Returns whether there were any."""
        drafts = drafter.drafts(list(self._running.values()), self.slots)
        drafts_BD = np.zeros((self.slots, drafter.length), np.int32)
        lengths: dict[int, int] = {}
        for slot, draft in zip(self._running, drafts):
            drafts_BD[slot, : len(draft)] = draft
            lengths[slot] = len(draft)
        if not any(lengths.values()):
            return False
        done_B = np.ones(self.slots, bool)
        done_B[list(self._running)] = False
        new_BT, counts_B = self._device.verify(self._current_draws(), done_B, drafts_BD)
        for slot, length in lengths.items():
            drafter.note(length, int(counts_B[slot]))
        self._add({slot: new_BT[slot, : counts_B[slot]] for slot in lengths})
        return True

    def _add(self, drawn: dict[int, np.ndarray]) -> None:
        """Adds drawn ids to the sequences of slots, and frees the slots of those that end."""
        for slot, ids_T in drawn.items():
            sequence = self._running[slot]
            ids = sequence.take(ids_T.tolist())
            if sequence.is_finished:
                del self._running[slot]
                self._keep(slot, sequence)
            if ids or sequence.is_finished:
                self._updates.append(Update(sequence.id, ids, sequence.is_finished))

    def _keep(self, slot: int, sequence: Running) -> None:
        """Notes what a slot holds after its sequence has left it."""
        # The keys and values of the last id are computed by the step after it, if there was one.
        ids = [*sequence.prompt[: sequence.read], *sequence.new[:-1]]
        key = sequence.key if sequence.read == len(sequence.prompt) else b""
        self._prefixes.hold(slot, ids, len(ids), key)

    def _resize(self, joining: Sequence[Running]) -> None:
        """Makes room in the cache for sequences, and less where all need much less."""
        needed = self._least
        placed = (self._running, self._reading, self._ready)
        sequences = itertools.chain(joining, *(by_slot.values() for by_slot in placed))
        needed = max(needed, *(sequence.end for sequence in sequences))
        capacity = self._device.capacity
        if bucket(needed) <= capacity:
            # Smaller only if those that wait will not make it grow again.
            needed = max((needed, *[sequence.end for sequence in self._waiting]))
            if bucket(needed) > capacity // 2:
                return
        self._device.resize(bucket(needed), needed)
        self._prefixes.truncate(bucket(needed))

    def _wait(self, sequence: Running, is_last: bool) -> None:
        """Adds a sequence to the end of the queue, or in front of it."""
        if is_last:
            self._waiting.append(sequence)
        else:
            self._waiting.appendleft(sequence)
        self._prompts[sequence.key] += 1

    def _leave_queue(self, sequence: Running) -> None:
        """Removes a sequence from the queue."""
        self._waiting.remove(sequence)
        self._prompts[sequence.key] -= 1
        if not self._prompts[sequence.key]:
            del self._prompts[sequence.key]

    def _current_draws(self) -> Draws:
        if not self._least:
            return self._draws.used()
        running = self._running.values()
        return self._draws.all_or_none(any(s.request.sampling.temperature for s in running))
