"""The work of the worker's thread: sequences with their events, and calls of functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from codellama_jax.serving.errors import ApiError
from codellama_jax.serving.texts import Prompt, Settings

DONE, TIME, STOPPED = "done", "time", "stopped"  # why a sequence ended


class Event(NamedTuple):
    """New ids of a sequence, and why it ended; or the error that ended it."""

    ids: list[int]
    reason: str = ""
    error: ApiError | None = None


@dataclass(eq=False)
class Job:
    """One sequence to generate.

    Attributes:
      prompt, settings: the ids to continue, and how tokens are drawn.
      number: the PRNG key is folded from the seed and this number.
      listener: called in the worker's thread with every event.
      submitted, started, first, last: times in seconds: of the submission, of the start of reading
        the prompt, of the first token, and of the last one; 0 before.
      reused: tokens of the prompt that the engine had read before.
      count: new ids so far.
      count_of_first: new ids that came at `first`, with the end of the prompt.
    """

    prompt: Prompt
    settings: Settings
    number: int
    listener: Callable[[Event], None]
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    reused: int = 0
    count: int = 0
    count_of_first: int = 0

    def deadline_passed(self, now: float) -> bool:
        """Returns whether one of its time limits is over."""
        since, limit = self.submitted, self.settings.prompt_seconds
        if self.first:
            since, limit = self.first, self.settings.predict_seconds
        return limit is not None and now - since > limit


@dataclass(eq=False)
class Call:
    """A function that computes with a model in the worker's thread.

    Attributes:
      work: the function. It must not raise.
      refuse: called instead, with the reason, if the thread ends before.
    """

    work: Callable[[], None]
    refuse: Callable[[ApiError], None]
