"""Continuous batching: sequences join and leave a batch of fixed size while it is being decoded.

The batch has slots. Requests wait in a queue; each takes a free slot at the next boundary between
two chunks of decoding steps, and gives it back when it ends. A prompt is read once for all waiting
requests that share it: its keys and values are copied from slot to slot. Other prompts of similar
length are read together.

The ids of a request depend on the request alone, not on the others nor on when it joins: as in
`sampler.generate`, logits may differ in their last bits where another shape is compiled, and every
draw has its own PRNG key. All decisions follow from the requests and the ids drawn, so that several
hosts that share a model take the same ones without talking.

    engine = Engine(model, slots=64)
    names = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        for update in engine.advance():
            ...

Dims: as in `slots.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import jax
import numpy as np

from codellama_jax.errors import UserError
from codellama_jax.generation import slots as programs
from codellama_jax.generation.batches import (
    bucket,
    bytes_per_device,
    check_prompt,
    decoding_weights,
    fetched,
    first_mask,
    padded,
)
from codellama_jax.generation.drawing import Draws, seed_data
from codellama_jax.generation.memory import (
    check_cache_memory,
    check_prompt_memory,
    free_bytes,
)
from codellama_jax.generation.requests import KEY_BYTES, Request, Running, Update, groups, size_of
from codellama_jax.models import decoding
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.hosts import on_all_hosts
from codellama_jax.sharding.mesh import on_mesh_of

# Steps per chunk. Every chunk costs a round trip to the device, and tokens drawn after the end of a
# sequence are wasted: `stop` is called only between chunks, stop ids are found on the device.
CHUNK_WITH_STOP = 16
CHUNK_STREAMED = 4
MAX_STOP_IDS = 4
NO_ID = -1  # pads the stop ids; no token has it
# While requests wait, a chunk ends once this share of the slots is done.
DONE_SHARE = 8
# Of `Draws`. One that no sequence has used so far is left out of the programs, which saves the time
# to compile and to compute it.
SETTINGS = frozenset({"temperature", "top_k", "top_p"})


class Engine:
    """Generates after prompts that come and go.

    It has no thread: `advance` does the work. `submit`, `cancel` and `advance` may not be called at
    the same time.

    Attributes:
      slots: sequences that are decoded at once.
      counts: prompts read and copied, chunks, and steps; a step computes one token of every slot.
    """

    def __init__(
        self, model: TrainedModel, slots: int, vocab: int | None = None, least: int = 0
    ) -> None:
        """Prepares the weights. Raises UserError where they do not fit in memory.

        Args:
          model: the model. Its decoding weights are prepared by the first engine.
          slots: sequences at once; more where the mesh's data axis does not divide them.
          vocab: ids from here on, which pad the vocabulary, are never drawn.
          least: positions that the cache has at least. A server gives the most that it allows, so
            that no request makes the cache longer and its programs compile again.
        """
        self.model, self.config = model, decoding.for_decoding(model.config)
        with on_mesh_of(model.params, decoding.LOGICAL_AXES):
            self._shards = jax.sharding.get_abstract_mesh().shape.get("data", 1)
            self._weights = decoding_weights(model)
        leaves = jax.tree.leaves(model.params)
        self._is_shared = not all(leaf.is_fully_addressable for leaf in leaves)
        self.slots = slots + -slots % self._shards
        self.counts: Counter[str] = Counter()
        self._least = least
        self._vocab = np.array(vocab or self.config.vocab_size, np.int32)
        self._submitted = 0
        self._waiting: deque[Running] = deque()
        self._prompts: Counter[bytes] = Counter()  # of the waiting requests
        self._running: dict[int, Running] = {}  # by slot
        self._held: dict[int, bytes] = {}  # the prompt whose keys and values each slot still holds
        self._checked: set[tuple[int, ...]] = set()  # shapes that fit in memory
        self._state: programs.State | None = None
        self._capacity = 0
        self._settings = {
            "temperature": np.zeros(self.slots, np.float32),
            "top_k": np.zeros(self.slots, np.int32),
            "top_p": np.ones(self.slots, np.float32),
            "seeds_BX": np.zeros((self.slots, seed_data(0).size), np.uint32),
            "numbers_B": np.zeros(self.slots, np.uint32),
            "stop_ids_BI": np.full((self.slots, MAX_STOP_IDS), NO_ID, np.int32),
            "ends_B": np.zeros(self.slots, np.int32),
        }
        self._used: set[str] = set()  # of SETTINGS, by any sequence so far
        self._updates: list[Update] = []  # since `advance` returned last

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._waiting and not self._running

    def submit(self, request: Request, name: str = "the prompt") -> int:
        """Queues a request and returns its id.

        Raises UserError, with the name of the prompt, for one that is empty, too long, or of
        another vocabulary.
        """
        check_prompt(self.config, request.prompt, request.sampling.max_new_tokens, name)
        if len(request.stop_ids) > MAX_STOP_IDS:
            raise ValueError(f"{len(request.stop_ids)} stop ids: at most {MAX_STOP_IDS} are found")
        if request.sampling.beams > 1:
            raise ValueError("the engine draws tokens; beam.py searches")
        sequence = Running(self._submitted, request)
        self._submitted += 1
        self._waiting.append(sequence)
        self._prompts[sequence.key] += 1
        return sequence.id

    def cancel(self, request: int) -> bool:
        """Ends a request without further updates. Its slot is free for the next chunk.

        Returns whether it was waiting or running.
        """
        for sequence in self._waiting:
            if sequence.id == request:
                self._waiting.remove(sequence)
                self._forget(sequence)
                return True
        for slot, sequence in self._running.items():
            if sequence.id == request:
                del self._running[slot]
                return True
        return False

    def holds(self, request: int) -> bool:
        """Returns whether a request waits, runs, or has an update that is still to be returned."""
        sequences = (*self._waiting, *self._running.values())
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
        """Fills free slots from the queue, runs one chunk, and returns the new ids.

        Raises UserError where memory does not suffice; of the requests that were to join the
        longest is dropped, and the others continue with the next call.
        """
        with on_mesh_of(self.model.params, decoding.LOGICAL_AXES):
            self._join()
            if self._running:
                self._decode()
        updates, self._updates = self._updates, []
        return updates

    def _join(self) -> None:
        """Starts waiting requests until no slot is free, or none waits."""
        while self._waiting and len(self._running) < self.slots:
            free = [slot for slot in range(self.slots) if slot not in self._running]
            joining: list[Running] = []
            while self._waiting and len(joining) < len(free):
                joining.append(self._waiting.popleft())
                self._forget(joining[-1])
            try:
                self._resize(joining)
                # Copies first: a prompt may be read into the slot from which another is copied.
                is_held = set(self._held.values())
                copied = [sequence for sequence in joining if sequence.key in is_held]
                others = [sequence for sequence in joining if sequence.key not in is_held]
                for sequences in (copied, others):
                    if sequences:
                        self._start(sequences, free)
            except UserError:
                self._requeue(joining)
                raise

    def _requeue(self, joining: Sequence[Running]) -> None:
        """Lets sequences that have not started wait again, except for the longest one."""
        left = [sequence for sequence in joining if not sequence.is_started]
        longest = max(left, key=operator.attrgetter("end"))
        for sequence in reversed(left):
            if sequence is not longest:
                self._waiting.appendleft(sequence)
                self._prompts[sequence.key] += 1

    def _start(self, sequences: Sequence[Running], free: list[int]) -> None:
        """Reads or copies the prompts of sequences into free slots, and draws their first tokens.

        Args:
          sequences: the prompts of all are held by slots, or those of none.
          free: the free slots; those that are taken are removed.
        """
        sources = {key: slot for slot, key in self._held.items()}
        to_read, to_copy, starting = [], [], {}
        for sequence in sequences:
            slot = self._take(sequence.key, free)
            starting[slot] = sequence
            if sequence.key not in sources:
                to_read.append((sequence, slot))
                sources[sequence.key] = slot
            elif sources[sequence.key] != slot and self._held.get(slot) != sequence.key:
                to_copy.append((sources[sequence.key], slot))
        for _, slot in to_read:
            # Not what it held, even where memory does not suffice for a later prompt.
            self._held.pop(slot, None)
        for group in groups(to_read, self._shards):
            self._read(group)
        if to_copy:
            self._copy(to_copy)
        for slot, sequence in starting.items():
            self._held[slot] = sequence.key
            self._set_draws(slot, sequence.request)
        self._running |= starting
        lengths_B = np.zeros(self.slots, np.int32)
        first: list[np.ndarray | None] = [None] * self.slots
        for slot, sequence in starting.items():
            lengths_B[slot], first[slot] = len(sequence.prompt), sequence.request.first
        is_free = all(ids is None for ids in first)
        first_BV = first_mask(None if is_free else first, self.slots, self.config.vocab_size)
        state = self._state
        assert state is not None
        arrays = (state.logits_BV, state.tokens_B, state.positions_B)
        tokens_B, positions_B = programs.start(*arrays, self._draws(), lengths_B, first_BV)
        self._state = dataclasses.replace(state, tokens_B=tokens_B, positions_B=positions_B)
        tokens_B = fetched(tokens_B)
        self._add({slot: tokens_B[slot : slot + 1] for slot in starting})

    def _take(self, key: bytes, free: list[int]) -> int:
        """Removes a free slot from the list and returns it.

        Best is one that holds the prompt, then one whose prompt no request waits for.
        """

        def cost(slot: int) -> int:
            held = self._held.get(slot)
            return 0 if held == key else 2 if held and self._prompts[held] else 1

        slot = min(free, key=cost)
        free.remove(slot)
        return slot

    def _read(self, group: Sequence[tuple[Running, int]]) -> None:
        """Reads the prompts of sequences into slots, in halves where memory does not suffice."""
        prompts = [sequence.prompt for sequence, _ in group]
        tokens_RT, lengths_R = padded(prompts, self._shards, size_of(len(group), self._shards))
        slots_R = np.full(len(tokens_RT), self.slots, np.int32)
        slots_R[: len(group)] = [slot for _, slot in group]
        inputs = (self._weights, self._state, tokens_RT, lengths_R, slots_R)
        program = (self.config, self.model.kv_cache, *inputs)
        shape = *tokens_RT.shape, self._capacity
        if shape not in self._checked:
            # The compiler knows the memory of a prompt before any of it is allocated. The call
            # below finds this program in JAX's cache and does not compile it again.
            compiled = programs.read.lower(*program).compile()
            try:
                size = len(prompts), max(map(len, prompts))
                self._check(functools.partial(check_prompt_memory, compiled, *size))
            except UserError:
                if len(group) == 1:
                    raise
                half = len(group) // 2
                self._read(group[:half])
                self._read(group[half:])
                return
            self._checked.add(shape)
        self._state = programs.read(*program)
        self.counts["prompts read"] += len(prompts)

    def _copy(self, to_copy: Sequence[tuple[int, int]]) -> None:
        """Copies prompts. `to_copy`: slots from which, and slots to which."""
        size = size_of(len(to_copy))
        sources_N, targets_N = np.zeros(size, np.int32), np.full(size, self.slots, np.int32)
        for index, (source, target) in enumerate(to_copy):
            sources_N[index], targets_N[index] = source, target
        self._state = programs.copied(self.config, self._state, sources_N, targets_N)
        self.counts["prompts copied"] += len(to_copy)

    def _decode(self) -> None:
        """Runs a chunk of steps."""
        requests = [sequence.request for sequence in self._running.values()]
        steps = programs.CHUNK
        if any(request.stop for request in requests):
            steps = CHUNK_WITH_STOP
        if any(request.on_tokens for request in requests):
            steps = CHUNK_STREAMED
        done_B = np.ones(self.slots, bool)
        done_B[list(self._running)] = False
        most_done = self.slots
        if self._waiting:
            # Every slot is taken, because requests wait.
            most_done = max(1, self.slots // DONE_SHARE)
        inputs = (self._state, self._draws(), done_B, steps, most_done)
        self._state, new_BT, count = programs.decode(self.config, self._weights, *inputs)
        new_BT = fetched(new_BT)[:, : int(count)]
        self.counts["steps"] += new_BT.shape[1]
        self.counts["chunks"] += 1
        self._add({slot: new_BT[slot] for slot in self._running})

    def _add(self, drawn: dict[int, np.ndarray]) -> None:
        """Adds drawn ids to the sequences of slots, and frees the slots of those that end."""
        for slot, ids_T in drawn.items():
            sequence = self._running[slot]
            ids = sequence.take(ids_T.tolist())
            if sequence.is_finished:
                del self._running[slot]
            if ids or sequence.is_finished:
                self._updates.append(Update(sequence.id, ids, sequence.is_finished))

    def _resize(self, joining: Sequence[Running]) -> None:
        """Makes room in the cache for sequences, and less where all need much less."""
        needed = self._least
        for sequence in (*self._running.values(), *joining):
            needed = max(needed, sequence.end)
        if bucket(needed) <= self._capacity:
            # Smaller only if those that wait will not make it grow again.
            needed = max((needed, *[sequence.end for sequence in self._waiting]))
            if bucket(needed) > self._capacity // 2:
                return
        capacity = bucket(needed)
        shape = self.config, self.model.kv_cache, self.slots, capacity
        size = bytes_per_device(jax.eval_shape(functools.partial(programs.empty, *shape)))
        self._check(functools.partial(check_cache_memory, size, self.slots, needed))
        if self._state is None:
            self._state = programs.empty(*shape)
        else:
            self._state = programs.resized(self.config, capacity, self._state)
        self._capacity = capacity
        for slot, key in list(self._held.items()):
            if len(key) // KEY_BYTES >= capacity:
                del self._held[slot]

    def _check(self, check: Callable[[], None]) -> None:
        """Calls a check of memory. Hosts that share the model fail together."""
        if self._is_shared:
            on_all_hosts(check)
        else:
            check()

    def _forget(self, sequence: Running) -> None:
        """Counts a request that no longer waits."""
        self._prompts[sequence.key] -= 1
        if not self._prompts[sequence.key]:
            del self._prompts[sequence.key]

    def _draws(self) -> Draws:
        """Returns the settings of every slot, without those that no sequence has used so far."""
        used: Set[str] = self._used
        if self._least:
            # A server compiles two programs before it is ready: with all settings, and with none.
            running = self._running.values()
            is_drawn = any(sequence.request.sampling.temperature for sequence in running)
            used = SETTINGS if is_drawn else frozenset()
        settings: dict[str, Any] = {**self._settings, **dict.fromkeys(SETTINGS - used)}
        return Draws(**settings, vocab=self._vocab)

    def _set_draws(self, slot: int, request: Request) -> None:
        """Takes over the settings of the request that starts in a slot."""
        sampling = request.sampling
        if sampling.temperature:
            self._used.add("temperature")
            if sampling.top_k:
                self._used.add("top_k")
            if sampling.top_p < 1:
                self._used.add("top_p")
        stop_ids = [*request.stop_ids, *[NO_ID] * (MAX_STOP_IDS - len(request.stop_ids))]
        values = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seeds_BX": seed_data(sampling.seed),
            "numbers_B": request.number,
            "stop_ids_BI": stop_ids,
            "ends_B": len(request.prompt) + sampling.max_new_tokens - 1,
        }
        for name, value in values.items():
            self._settings[name][slot] = value


def fitting_slots(model: TrainedModel, slots: int, tokens: int) -> int:
    """Returns `slots`, halved until their cache takes at most half of the free memory.

    Prompts need the other half while they are read. Sequences have up to `tokens` tokens.
    """
    config = decoding.for_decoding(model.config)
    with on_mesh_of(model.params, decoding.LOGICAL_AXES):
        decoding_weights(model)
        free = free_bytes()
        while free is not None and slots > 1:
            shape = config, model.kv_cache, slots, bucket(tokens)
            state = jax.eval_shape(functools.partial(programs.empty, *shape))
            if bytes_per_device(state) <= free // 2:
                break
            slots //= 2
    return slots
