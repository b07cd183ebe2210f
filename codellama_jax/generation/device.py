"""The engine's arrays on the device, and the calls of the programs that change them.

Dims: as in `slots.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from codellama_jax.errors import UserError
from codellama_jax.generation import slots as programs
from codellama_jax.generation.batches import (
    bucket,
    bytes_per_device,
    decoding_weights,
    fetched,
    first_mask,
    padded,
    piece_bucket,
)
from codellama_jax.generation.drawing import Draws
from codellama_jax.generation.memory import check_cache_memory, check_prompt_memory, free_bytes
from codellama_jax.generation.requests import READ_SIZES, Running, size_of
from codellama_jax.models import decoding
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.hosts import on_all_hosts
from codellama_jax.sharding.mesh import on_mesh_of


class Device:
    """The slots of an engine: their keys and values, logits, last tokens and positions.

    Its methods are called with the model's mesh in use.

    Attributes:
      config: the model, as `for_decoding` returns it.
      slots: B; a multiple of `shards`.
      shards: of the mesh's data axis.
      capacity: positions of the cache; 0 before the first call of `resize`.
      is_length_split: whether the mesh shards the length of sequences.
      widths: how many slots a step may compute, ascending; the last one is B.
      counts: as of the engine.
    """

    def __init__(self, model: TrainedModel, slots: int, copies_few: bool = False) -> None:
        """Prepares the weights. Raises UserError where they do not fit in memory.

        Args:
          model: the model.
          slots: sequences at once.
          copies_few: whether few sequences are decoded without the other slots, and short ones
            without the other positions. Their keys and values are copied for every chunk, so that
            they are at most a quarter of the slots, or of the positions. On a mesh of several
            devices the copies would be communication, and all are computed.
        """
        self.model, self.config = model, decoding.for_decoding(model.config)
        with on_mesh_of(model.params, decoding.LOGICAL_AXES):
            mesh = jax.sharding.get_abstract_mesh().shape
            self.shards, self.is_length_split = mesh.get("data", 1), mesh.get("context", 1) > 1
            is_single = jax.sharding.get_abstract_mesh().size <= 1
            self._weights = decoding_weights(model)
        leaves = jax.tree.leaves(model.params)
        # Parameters that other processes hold a part of: every host must run the same programs.
        self._is_shared = not all(leaf.is_fully_addressable for leaf in leaves)
        # The data axis shards the slots, and each device needs the same number of them.
        self.slots = slots + -slots % self.shards
        few = []
        if copies_few and is_single:
            # At most a quarter: a copy of few slots beside the cache must stay cheap in memory and
            # time.
            few = [size for size in READ_SIZES if 4 * size <= self.slots]
        self.widths = (*few, self.slots)
        self.capacity = 0
        self.counts: Counter[str] = Counter()
        # A program is checked once per shape: compiling ahead of time only serves to learn its
        # memory.
        self._checked: set[tuple[object, ...]] = set()  # shapes that fit in memory
        self._state: programs.State | None = None

    def resize(self, capacity: int, needed: int) -> None:
        """Gives the cache another length. Raises UserError where it does not fit in memory.

        Args:
          capacity: positions.
          needed: tokens of the longest sequence.
        """
        shape = self.config, self.model.kv_cache, self.slots, capacity
        # The old cache is still allocated while the new one is written, so the check is for the
        # complete new size and not for the difference.
        state = jax.eval_shape(functools.partial(programs.empty, *shape))
        size = bytes_per_device(state, programs.state_specs(self.config))
        if len(self.widths) > 1:
            size += size // 4  # for the copies of few sequences, or of short ones
        self._check(functools.partial(check_cache_memory, size, self.slots, needed))
        if self._state is None:
            self._state = programs.empty(*shape)
        else:
            self._state = programs.resized(self.config, capacity, self._state)
        self.capacity = capacity

    def read(self, group: Sequence[tuple[Running, int]], longest: int) -> None:
        """Reads a piece of each sequence's prompt into its slot, from the same beginning or none.

        They are read in halves where memory does not suffice; raises UserError for one alone.

        Args:
          group: sequences and their slots. Either none has any tokens in the cache, or all have.
          longest: tokens of a piece at most; 0 for any number.
        """
        pieces = [sequence.prompt[sequence.read : sequence.stop] for sequence, _ in group]
        tokens_RT, lengths_R, starts_R, slots_R = self._padded(group, pieces, longest)
        is_first = group[0][0].read == 0
        program: tuple[Any, ...]
        function: Any
        # Two programs: the first piece attends only to itself (prefill), a later one also to the
        # keys and values that its slot holds.
        if is_first:
            inputs = (self._weights, self._state, tokens_RT, lengths_R, slots_R)
            program, function = (self.config, self.model.kv_cache, *inputs), programs.read
        else:
            arrays = (tokens_RT, starts_R, lengths_R, slots_R)
            program = (self.config, self._weights, self._state, *arrays)
            function = programs.extended
        shape = is_first, *tokens_RT.shape, self.capacity
        if shape not in self._checked:
            # The compiler knows the memory of a prompt before any of it is allocated. The call
            # below finds this program in JAX's cache and does not compile it again.
            compiled = function.lower(*program).compile()
            try:
                sizes = len(pieces), max(map(len, pieces))
                self._check(functools.partial(check_prompt_memory, compiled, *sizes))
            except UserError:
                if len(group) == 1:
                    raise
                # Half the prompts need half the activations. The recursion pads again, to a smaller
                # batch.
                half = len(group) // 2
                self.read(group[:half], longest)
                self.read(group[half:], longest)
                return
            self._checked.add(shape)
        self._state = function(*program)
        self.counts["prompts read"] += sum(sequence.pieces == 0 for sequence, _ in group)
        self.counts["prompt tokens read"] += sum(map(len, pieces))

    def _padded(
        self, group: Sequence[tuple[Running, int]], pieces: Sequence[Sequence[int]], longest: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns tokens_RT, lengths_R, starts_R and slots_R of pieces; see `read`."""
        length = 0
        if group[0][0].read:
            # Only later pieces: their program is compiled apart, so they use fewer and coarser
            # lengths.
            length = piece_bucket(max(map(len, pieces)))
            length = min(length, longest) if longest else length
        size = size_of(len(group), self.shards)
        tokens_RT, lengths_R = padded(pieces, self.shards, size, length)
        # Rows that only pad the batch point to slot B, which does not exist: the scatter in
        # `slots.py` drops updates whose index is out of bounds.
        starts_R, slots_R = np.zeros_like(lengths_R), np.full_like(lengths_R, self.slots)
        for row, (sequence, slot) in enumerate(group):
            starts_R[row], slots_R[row] = sequence.read, slot
        return tokens_RT, lengths_R, starts_R, slots_R

    def copy(self, copies: Mapping[int, tuple[int, int]]) -> None:
        """Copies slots, all at once. `copies`: by target, the source and the tokens in use."""
        # The padding of the list copies slot 0 to slot B, which the scatter drops.
        size = size_of(len(copies))
        sources_N, lengths_N = np.zeros((2, size), np.int32)
        targets_N = np.full(size, self.slots, np.int32)
        for index, (target, (source, length)) in enumerate(copies.items()):
            sources_N[index], targets_N[index], lengths_N[index] = source, target, length
        arrays = (sources_N, targets_N, lengths_N)
        self._state = programs.copied(self.config, self._state, *arrays)
        self.counts["prompts copied"] += len(copies)

    def start(self, starting: Mapping[int, Running], draws: Draws) -> np.ndarray:
        """Returns tokens_B, in which sequences by slot, with prompts in the cache, have their
        first."""
        lengths_B = np.zeros(self.slots, np.int32)
        # The mask of first tokens has one row per slot. None instead of a mask of ones saves the
        # transfer of B x V booleans in the common case, and is a separate program.
        first: list[np.ndarray | None] = [None] * self.slots
        for slot, sequence in starting.items():
            lengths_B[slot], first[slot] = len(sequence.prompt), sequence.request.first
        is_free = all(ids is None for ids in first)
        first_BV = first_mask(None if is_free else first, self.slots, self.config.vocab_size)
        state = self._state
        assert state is not None
        arrays = (state.logits_BV, state.tokens_B, state.positions_B)
        tokens_B, positions_B = programs.start(*arrays, draws, lengths_B, first_BV)
        self._state = dataclasses.replace(state, tokens_B=tokens_B, positions_B=positions_B)
        return fetched(tokens_B)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many positions a step may attend to, ascending; the last one is the capacity."""
        if len(self.widths) == 1:
            return (self.capacity,)
        # Every length is another program for each width, and a server compiles them all before
        # it is ready.
        return self.capacity // 4, self.capacity

    def decode(
        self, draws: Draws, done_B: np.ndarray, steps: int, most_done: int, needed: int
    ) -> np.ndarray:
        """Returns new_BT of a chunk of steps.

        Args:
          draws, done_B, steps, most_done: as of `slots.decode`.
          needed: positions that the steps reach.
        """
        # The smallest compiled batch that holds all running sequences, and the shortest cache that
        # holds every position they reach in this chunk.
        width = next(width for width in self.widths if width >= self.slots - done_B.sum())
        length = next(length for length in self.lengths if length >= needed)
        slots_N = None
        # No copy is needed: decode on the state itself.
        if (width, length) == (self.slots, self.capacity):
            length = 0
        else:
            # Those that are not done, and others up to the width.
            slots_N = np.argsort(done_B, kind="stable")[:width].astype(np.int32)
        inputs = (self._state, draws, done_B, steps, most_done, slots_N, length)
        self._state, new_BT, count = programs.decode(self.config, self._weights, *inputs)
        # The array always has CHUNK columns; the loop on the device filled `count` of them.
        new_BT = fetched(new_BT)[:, : int(count)]
        self.counts["steps"] += new_BT.shape[1]
        self.counts["chunks"] += 1
        return new_BT

    def verify(
        self, draws: Draws, done_B: np.ndarray, drafts_BD: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns new_BT and how many of each slot's columns count; see `slots.verified`."""
        inputs = (self._state, draws, done_B, drafts_BD)
        self._state, new_BT, counts_B = programs.verified(self.config, self._weights, *inputs)
        self.counts["steps"] += 1
        self.counts["chunks"] += 1
        return fetched(new_BT), fetched(counts_B)

    def _check(self, check: Callable[[], None]) -> None:
        """Calls a check of memory. Hosts that share the model fail together."""
        if self._is_shared:
            on_all_hosts(check)
        else:
            check()


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
            if bytes_per_device(state, programs.state_specs(config)) <= free // 2:
                break
            slots //= 2
    return slots
