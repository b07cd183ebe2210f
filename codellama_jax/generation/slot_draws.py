"""How the sequence in each slot of the engine is drawn."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np

from codellama_jax.generation.drawing import Draws, seed_data
from codellama_jax.generation.requests import Request

MAX_STOP_IDS = 4
NO_ID = -1  # pads the stop ids; no token has it
# Of `Draws`. One that no sequence has used so far is left out of the programs, which saves the time
# to compile and to compute it.
SETTINGS = frozenset({"temperature", "top_k", "top_p"})


class SlotDraws:
    """The settings of all slots' draws."""

    def __init__(self, slots: int, vocab: int) -> None:
        """Starts with greedy slots. `vocab`: ids from here on are never drawn."""
        # NumPy arrays on the host, written slot by slot; each call of a program transfers them.
        self._vocab = np.array(vocab, np.int32)
        self._settings = {
            "temperature": np.zeros(slots, np.float32),
            "top_k": np.zeros(slots, np.int32),
            "top_p": np.ones(slots, np.float32),
            "seeds_BX": np.zeros((slots, seed_data(0).size), np.uint32),
            "numbers_B": np.zeros(slots, np.uint32),
            "stop_ids_BI": np.full((slots, MAX_STOP_IDS), NO_ID, np.int32),
            "ends_B": np.zeros(slots, np.int32),
        }
        self._used: set[str] = set()  # of SETTINGS, by any sequence so far

    def used(self) -> Draws:
        """Returns the settings of every slot, without those that no sequence has used so far."""
        return self._with(self._used)

    def all_or_none(self, is_drawn: bool) -> Draws:
        """Returns all settings of every slot, or those of greedy sequences.

        A server compiles these two programs before it is ready.
        """
        return self._with(SETTINGS if is_drawn else frozenset())

    def set(self, slot: int, request: Request) -> None:
        """Takes over the settings of the request that starts in a slot."""
        sampling = request.sampling
        if sampling.temperature:
            # Settings are only added: each other combination is another program to compile.
            self._used.add("temperature")
            if sampling.top_k:
                self._used.add("top_k")
            if sampling.top_p < 1:
                self._used.add("top_p")
        stop_ids = [*request.stop_ids, *[NO_ID] * (MAX_STOP_IDS - len(request.stop_ids))]
        values: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            # A greedy sequence draws nothing.
            "seeds_BX": seed_data(sampling.seed if sampling.temperature else 0),
            "numbers_B": request.number,
            "stop_ids_BI": stop_ids,
            # Positions count from 0, so the last new token is at prompt + max_new_tokens - 1.
            "ends_B": len(request.prompt) + sampling.max_new_tokens - 1,
        }
        for name, value in values.items():
            self._settings[name][slot] = value

    def _with(self, used: Set[str]) -> Draws:
        # None is another pytree structure than an array, so that jit compiles a program without it.
        settings: dict[str, Any] = {**self._settings, **dict.fromkeys(SETTINGS - used)}
        return Draws(**settings, vocab=self._vocab)
