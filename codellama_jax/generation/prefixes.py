"""Which tokens the slots of the engine hold, and which of them a new prompt can use again.

A slot holds the keys and values of its prompt and, after its sequence has ended, of the new ids. A
prompt that begins with the same tokens copies them and reads the rest. Prompts are found by their
first `BLOCK` tokens, and compared token by token with those that share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

# The fewest tokens worth copying. Nearly all prompts share BOS.
BLOCK = 16


class Held:
    """What a slot holds.

    Attributes:
      ids: the tokens, from position 0.
      filled: how many of them have keys and values in the cache; the others are still to be read.
      key: the prompt, as bytes, after which the slot holds the logits; b"" for none.
      used: when it was last used.
    """

    def __init__(self, ids: np.ndarray, filled: int, key: bytes, used: int) -> None:
        """Holds `filled` of the tokens."""
        self.ids, self.filled, self.key, self.used = ids, filled, key, used


class Match(NamedTuple):
    """The numbers of tokens at its beginning that a prompt shares with the prompts of slots.

    Attributes:
      slot: the slot with the most of them in its cache; -1 for none.
      length: how many these are; 0 or at least `BLOCK`.
      promised: the most that any slot will have once all of its prompt is read. It may be another
        slot than `slot`.
    """

    slot: int
    length: int
    promised: int


class Prefixes:
    """Keeps what every slot holds, and chooses slots."""

    def __init__(self, slots: int, is_shared: bool) -> None:
        """Starts with empty slots. Without `is_shared` only equal prompts are found."""
        self._slots, self._is_shared = slots, is_shared
        # Two indexes of the same slots: by the full prompt, which also has logits, and by its first
        # tokens. Without the second every prompt would be compared with every slot.
        self._held: dict[int, Held] = {}
        self._by_key: dict[bytes, set[int]] = {}
        self._by_head: dict[bytes, set[int]] = {}
        self._clock = 0

    def hold(self, slot: int, ids: Sequence[int] | np.ndarray, filled: int, key: bytes) -> None:
        """Notes what a slot holds from now on; see `Held`."""
        # The indexes must lose the old content first, or a later prompt would match tokens that are
        # gone.
        self.forget(slot)
        held = Held(np.asarray(ids, np.int32), filled, key, self._tick())
        self._held[slot] = held
        if key:
            self._by_key.setdefault(key, set()).add(slot)
        if self._is_shared and len(held.ids) >= BLOCK:
            self._by_head.setdefault(_head(held.ids), set()).add(slot)

    def forget(self, slot: int) -> None:
        """Notes that a slot holds nothing."""
        held = self._held.pop(slot, None)
        if held is None:
            return
        for index, name in ((self._by_key, held.key), (self._by_head, _head(held.ids))):
            if slot in index.get(name, ()):
                index[name].remove(slot)
                if not index[name]:
                    del index[name]

    def truncate(self, capacity: int) -> None:
        """Notes that the cache has only `capacity` positions from now on."""
        for slot, held in list(self._held.items()):
            # The last position is not kept: the engine writes there while a slot is free.
            if held.filled >= capacity:
                self.hold(slot, held.ids[: capacity - 1], capacity - 1, b"")

    def slot_with(self, key: bytes) -> int:
        """Returns a slot that holds a prompt and the logits after it; -1 for none."""
        slots = self._by_key.get(key)
        return min(slots) if slots else -1

    def holds_prompt(self, slot: int, key: bytes) -> bool:
        """Returns whether a slot holds a prompt and the logits after it."""
        return slot in self._by_key.get(key, ())

    def match(self, ids: np.ndarray) -> Match:
        """Returns the slot that shares the most tokens with a prompt, its last one left out.

        The last token is always read, since the logits after it are needed.
        """
        slot, length, promised = -1, 0, 0
        if not self._is_shared or len(ids) <= BLOCK:
            return Match(slot, length, promised)
        # Sorted, because every host must choose the same slot and the order of a set is not fixed.
        for candidate in sorted(self._by_head.get(_head(ids), ())):
            held = self._held[candidate]
            # `held.ids` is the full prompt even while only `filled` tokens of it are in the cache.
            shared = min(_shared(held.ids, ids), len(ids) - 1)
            promised = max(promised, shared)
            if min(shared, held.filled) > length:
                slot, length = candidate, min(shared, held.filled)
        if length < BLOCK:
            slot, length = -1, 0
        return Match(slot, length, promised)

    def choose(
        self, free: Collection[int], key: bytes, match: Match, waiting: Counter[bytes]
    ) -> int:
        """Returns the free slot that a prompt takes.

        Best is one that holds the prompt; then the one whose tokens the prompt continues, if it
        keeps at least half of them; then empty ones, and the least recently used one. Slots whose
        prompts are `waiting` are taken last.

        Args:
          free: free slots.
          key: the prompt as bytes.
          match: what it shares with a slot.
          waiting: how many requests wait for each prompt.
        """

        def cost(slot: int) -> tuple[int, int, int]:
            held = self._held.get(slot)
            if held is None:
                return 2, -1, slot
            if held.key == key:
                return 0, 0, slot
            # Its prompt will be needed again soon: overwriting it would mean to read it a second
            # time.
            if held.key and waiting[held.key]:
                return 3, held.used, slot
            # Taking the slot itself saves a copy, but loses the tokens that the prompt does not
            # share. With less than half of them shared they may be worth more to another prompt.
            if slot == match.slot and 2 * match.length >= len(held.ids):
                return 1, 0, slot
            return 2, held.used, slot

        return min(free, key=cost)

    def touch(self, slot: int) -> None:
        """Notes that what a slot holds has been used."""
        self._held[slot].used = self._tick()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _head(ids: np.ndarray) -> bytes:
    return ids[:BLOCK].tobytes()


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many tokens two sequences share at their beginning."""
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    return int(np.argmax(differs)) if differs.any() else size
