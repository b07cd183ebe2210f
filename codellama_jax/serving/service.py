"""The model behind the endpoints: prompts of requests, their limits, and their way to the worker.

Lives in the event loop. Everything that takes longer than a moment runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from codellama_jax.data.infilling import prompt_ids, start_ids
from codellama_jax.generation.middle import Order, without_ramble
from codellama_jax.generation.settings import MAX_SEED, MIN_TEMPERATURE, Sampling
from codellama_jax.models.trained import TrainedModel
from codellama_jax.serving.ends import CursorEnds
from codellama_jax.serving.errors import ApiError, invalid
from codellama_jax.serving.jobs import DONE, Call, Event, Job
from codellama_jax.serving.texts import Prompt, Settings, Text
from codellama_jax.serving.worker import Worker, engine_error
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.chat import ChatFormat, Message

Result = TypeVar("Result")
LEAST_TOP_P = 1e-6  # the protocols allow 0, which keeps the most likely token alone


@dataclass(frozen=True)
class Features:
    """The model and its modes.

    Attributes:
      name: of the model, without a path.
      tokenizer: the model's.
      order: of infilling prompts, unless the request names one.
      infills: whether the model was trained to infill.
      chat: the format of conversations; None for a model without one.
      healing: whether prompts that may end inside a token are healed.
      ends_at_dedent, ends_at_repetition: the defaults of the endpoint for editors.
      quantization: names of the quantization of weights and of the cache.
      schemes: the quantizations of weights that are served, the first one as `name`.
      created: when the server started, in seconds since 1970.
    """

    name: str
    tokenizer: Tokenizer
    order: Order
    infills: bool
    chat: ChatFormat | None
    healing: bool = False
    ends_at_dedent: bool = False
    ends_at_repetition: bool = False
    quantization: dict[str, str] = field(default_factory=dict)
    created: int = 0
    schemes: tuple[str, ...] = ("none",)

    @property
    def models(self) -> list[str]:
        """The names of the models: `name`, and with the quantization those after the first."""
        return [self.name, *(f"{self.name}:{scheme}" for scheme in self.schemes[1:])]


@dataclass(frozen=True)
class Cursor:
    """The place of an infilling request.

    Attributes:
      prefix, suffix: texts around the middle.
      begun: the beginning of the middle, from which it is continued.
      spm: the order; None for the server's.
      ends: where the middle ends before EOT.
    """

    prefix: str
    suffix: str
    begun: str = ""
    spm: bool | None = None
    ends: CursorEnds | None = None


class Service:
    """Turns requests into sequences of the worker."""

    def __init__(self, features: Features, worker: Worker) -> None:
        """Serves a model with the worker that runs it."""
        self.features, self.worker = features, worker
        self.tokenizer = features.tokenizer

    def number_of(self, name: str | None) -> int:
        """Returns the number of a model. Raises ApiError 404 for a name that no model has."""
        if not name:
            return 0
        models = self.features.models
        if name not in models:
            message = f"model is {name[:60]!r}: this server has {', '.join(map(repr, models))}"
            raise ApiError(404, message, "model", "model_not_found")
        return models.index(name)

    def completion(self, prompt: str | list[int]) -> Prompt:
        """Returns the prompt of a text, or of ids. Raises ApiError for ids of no vocabulary."""
        stop_ids = (self.tokenizer.eos_id,)
        if isinstance(prompt, str):
            ids, is_empty = self.tokenizer.prompt(prompt), not prompt
        else:
            # Ids instead of a text: the client has decided on BOS and token borders itself.
            self.check_ids("prompt", prompt)
            ids, is_empty = prompt, not self.tokenizer.decode(prompt)
        # After an empty prompt the first token carries the leading space.
        decode = functools.partial(self.tokenizer.decode, leading_space=is_empty)
        healed = prompt if self.features.healing and isinstance(prompt, str) else None
        unfinished = self.tokenizer.unfinished
        return Prompt(ids, decode, unfinished, stop_ids, healed=healed or None)

    def middle(self, cursor: Cursor, before: Sequence[int] = ()) -> Prompt:
        """Returns the prompt of a middle.

        Raises ApiError for a model that was trained without infilling.

        Args:
          cursor: the place.
          before: ids of other files, which precede the prompt.
        """
        self.check_infills()
        tokenizer = self.tokenizer
        spm = self.features.order.spm if cursor.spm is None else cursor.spm
        prefix = cursor.prefix + cursor.begun
        if spm:
            ids = prompt_ids(tokenizer, prefix, cursor.suffix, spm)
        else:
            # In PSM order the middle follows the MID sentinel, so that its beginning is encoded
            # after it. In SPM order prefix and beginning are one text, with the tokens that
            # training had.
            ids = prompt_ids(tokenizer, cursor.prefix, cursor.suffix, spm)
            ids += tokenizer.encode(cursor.begun, leading_space=False)
        if before:
            start = start_ids(tokenizer)
            # Other files come between BOS and the infilling sentinels: BOS must stay the first
            # token.
            ids = [*start, *before, *ids[len(start) :]]
        # The middle token precedes a PSM middle, so that its first piece has no leading space.
        decode = functools.partial(tokenizer.decode, leading_space=spm and not prefix)
        return Prompt(
            ids,
            decode,
            tokenizer.unfinished,
            (tokenizer.eot_id, tokenizer.eos_id),
            functools.partial(without_ramble, prefix=prefix, suffix=cursor.suffix),
            cursor.ends,
            prefix if spm and self.features.healing else None,
        )

    def answer(self, messages: Sequence[Message]) -> Prompt:
        """Returns the prompt of a conversation. Raises ApiError, UserError for one it refuses."""
        chat = self.features.chat
        if chat is None:
            problem = f"{self.features.name} was not trained on conversations"
            raise ApiError(400, f"{problem}: use /v1/completions", code="unsupported")
        ids = chat.prompt_ids(self.tokenizer, messages)
        decode = functools.partial(self.tokenizer.decode, leading_space=False)
        stop_ids, unfinished = chat.stop_ids(self.tokenizer), self.tokenizer.unfinished
        return Prompt(ids, decode, unfinished, stop_ids, is_stripped=True)

    def check_infills(self) -> None:
        """Raises ApiError for a model that was trained without infilling."""
        if not self.features.infills:
            problem = f"{self.features.name} was trained without infilling"
            raise ApiError(400, f"{problem}: send a prompt without a suffix", code="unsupported")

    def check_ids(self, name: str, ids: list[int]) -> None:
        """Raises ApiError for a list that is empty, or that holds an id of no vocabulary entry."""
        size = self.tokenizer.vocab_size
        if not ids:
            raise invalid(name, "has no ids: it needs at least one")
        if not 0 <= min(ids) <= max(ids) < size:
            raise invalid(name, f"has ids from {min(ids)} to {max(ids)}: the model has {size}")

    def check_length(self, prompt: Prompt, new: int, param: str = "prompt") -> None:
        """Raises ApiError, with the numbers, for a prompt that does not fit in the context."""
        # Evaluated before queueing: a request that cannot fit would wait for a slot only to be
        # refused.
        tokens, context = len(prompt.ids), self.worker.context
        if tokens + new > context:
            problem = f"has {tokens:,} tokens, with {new:,} new ones {tokens + new:,}"
            allowed = f"the context holds {context:,}: shorten it or ask for fewer new tokens"
            raise invalid(param, f"{problem}; {allowed}", "context_length_exceeded")

    def room(self, prompt: Prompt, param: str = "prompt") -> int:
        """Returns how many new tokens fit. Raises ApiError where none does."""
        self.check_length(prompt, 1, param)
        return self.worker.context - len(prompt.ids)

    async def in_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Returns the result of a function, such as the tokenizer, that may take a while."""
        return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)

    async def with_model(self, number: int, work: Callable[[TrainedModel], Result]) -> Result:
        """Returns the result of a function that computes with a model, in the worker's thread.

        Raises ApiError 503 where it fails, as for memory, and where that thread has ended.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        # Runs in the event loop: a future may not be resolved from another thread.
        def resolve(result: Any, error: Exception | None) -> None:
            # The client left while the model computed.
            if future.cancelled():
                return
            if error:
                future.set_exception(error)
            else:
                future.set_result(result)

        def end(result: Any, error: Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(resolve, result, error)

        def run() -> None:
            result, error = None, None
            try:
                result = work(self.worker.models[number])
            except Exception as raised:
                error = engine_error(raised)
            end(result, error)

        self.worker.call(Call(run, functools.partial(end, None)))
        return await future


def sampling_of(values: dict[str, Any], new: int) -> Sampling:
    """Returns how to draw, from the fields `temperature`, `top_p`, `top_k` and `seed`."""
    temperature = values["temperature"]
    seed = values.get("seed")
    # Neither protocol repeats an answer unless a seed is given, but Sampling's default seed would.
    if seed is None or seed < 0:
        seed = random.getrandbits(32)
    return Sampling(
        # The protocols allow smaller temperatures than `Sampling`. Below its limit fp32 logits
        # would overflow, and the draw is practically greedy.
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_k=values.get("top_k") or 0,
        top_p=max(values["top_p"], LEAST_TOP_P),
        max_new_tokens=new,
        # The protocols allow 64-bit seeds, and a PRNG key of JAX holds 32 bits.
        seed=seed % (MAX_SEED + 1),
    )


class Piece(NamedTuple):
    """New text and ids of a sequence, by its number, and whether it has ended."""

    sequence: int
    text: str
    ids: list[int]
    is_finished: bool


class Generation:
    """The sequences of one HTTP request: an async context, which cancels them where it is left.

    Attributes:
      texts: the text of each sequence.
      jobs: the sequences.
    """

    def __init__(self, service: Service) -> None:
        """Starts without sequences."""
        self.texts: list[Text] = []
        self.jobs: list[Job] = []
        self._worker = service.worker
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def add(self, prompt: Prompt, settings: Settings, number: int = 0) -> None:
        """Adds a sequence."""
        # The worker's thread calls the listener, which only puts the event into the loop's queue.
        listener = functools.partial(self._listen, len(self.jobs))
        self.texts.append(Text(prompt, settings))
        self.jobs.append(Job(prompt, settings, number, listener))

    async def __aenter__(self) -> Generation:
        self._worker.submit(self.jobs)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._worker.cancel(self.jobs)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yields the pieces, one per token, that are there at once.

        Raises the ApiError of a sequence that failed.
        """
        async for index, event in self._all_events():
            text = self._text(index)
            # Token by token, although several arrive at once: an event then holds one token,
            # whatever the size of the engine's chunks.
            pieces = [Piece(index, text.add([token]), [token], False) for token in event.ids]
            if event.reason:
                pieces.append(Piece(index, text.finish(event.reason == DONE), [], True))
            yield pieces

    async def finish(self) -> list[Text]:
        """Returns all texts once they are complete. Raises as `pieces`."""
        async for index, event in self._all_events():
            self._text(index).extend(event.ids)
            if event.reason:
                self._text(index).finish(event.reason == DONE)
        return self.texts

    async def _all_events(self) -> AsyncIterator[tuple[int, Event]]:
        ended: set[int] = set()
        while len(ended) < len(self.jobs):
            index, event = await self._events.get()
            if index in ended:
                continue  # the server stops: ids that came after the end
            # Of several sequences one that failed fails the request; leaving the context cancels
            # the others.
            if event.error:
                raise event.error
            yield index, event
            if event.reason:
                ended.add(index)

    def _text(self, index: int) -> Text:
        # Healing, just before the sequence starts, replaces the prompt.
        self.texts[index].prompt = self.jobs[index].prompt
        return self.texts[index]

    def _listen(self, index: int, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
