"""The thread that owns the engine. Requests reach it through a queue, and listeners get new ids.

Everything that computes on the device happens in this thread: loading, warming up, decoding and
scoring. Its listeners are called there too, and pass what they get to the event loop.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from codellama_jax.command_line import FULL_MEMORY
from codellama_jax.errors import UserError
from codellama_jax.generation.batches import bucket, piece_bucket
from codellama_jax.generation.engine import PIECE, Engine
from codellama_jax.generation.options import note
from codellama_jax.generation.prefixes import BLOCK
from codellama_jax.generation.requests import READ_SIZES, Request, Update, size_of
from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import healed_prompts
from codellama_jax.models.trained import TrainedModel
from codellama_jax.serving.errors import ApiError, one_line
from codellama_jax.serving.jobs import DONE, STOPPED, TIME, Call, Event, Job
from codellama_jax.serving.texts import stop_of

STARTING, READY, STOPPING, FAILED = "loading model", "ok", "stopping", "failed"


class Sizes(NamedTuple):
    """The sizes of a server.

    Attributes:
      slots: sequences that are decoded at once.
      context: tokens of a prompt and its new ones, at most.
      queue: sequences that may wait beyond the slots.
      warm_up: prompts of up to so many tokens are compiled for before the first request.
      piece: tokens of a prompt that are read at once; see `Engine`.
      prefix_cache: whether prompts that begin alike share what was read.
    """

    slots: int
    context: int
    queue: int
    warm_up: int
    piece: int = PIECE
    prefix_cache: bool = True


class Worker:
    """Runs the engine.

    Attributes:
      slots: sequences of a model that are decoded at once.
      context: tokens of a prompt and its new ones, at most.
      queue_size: sequences that may wait beyond the slots.
      state: STARTING, READY, STOPPING or FAILED.
      failure: the exception that ended the start.
      counts: totals since the start, for the metrics.
      models: the models, once they are loaded: one with each quantization.
    """

    def __init__(self, load: Callable[[], list[TrainedModel]], sizes: Sizes) -> None:
        """Prepares a worker whose thread calls `load` first."""
        self.slots, self.context, self.queue_size = sizes.slots, sizes.context, sizes.queue
        self._warm_up_tokens = min(sizes.warm_up, sizes.context)
        self._piece, self._prefix_cache = sizes.piece, sizes.prefix_cache
        self.state = STARTING
        self.failure: Exception | None = None
        self.counts: Counter[str] = Counter()
        self.models: list[TrainedModel] = []
        self._load = load
        # The only way into the thread: the engine is not safe to call from two threads, so that the
        # event loop queues functions and this thread runs them between chunks.
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._engines: dict[int, Engine] = {}  # by the number of the model
        self._jobs: dict[tuple[int, int], Job] = {}  # by it, and the engine's id of the request
        self._unfinished: set[Job] = set()  # submitted by clients, whether the engine has them
        self._calls: set[Call] = set()  # that have not begun
        self._has_ended = False  # whether the thread carries out no more commands
        # Guards the last three, which both threads change: nothing may be added once the thread has
        # answered what is left. `_engines` and `_jobs` belong to the engine's thread.
        self._lock = threading.Lock()
        # A daemon: a long compilation must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Ends all sequences and the thread. Returns whether it ended within the time."""
        self.state = STOPPING
        self.end_all()
        self._commands.put(self._finish)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def drain(self) -> None:
        """Refuses new requests from now on; those that run continue."""
        self.state = STOPPING

    def end_all(self) -> None:
        """Ends all sequences with the ids that they have, even while the thread compiles."""
        with self._lock:
            jobs = list(self._unfinished)
            self._unfinished.clear()
        for job in jobs:
            job.listener(Event([], STOPPED))
        self._commands.put(functools.partial(self._cancel, jobs))

    @property
    def all_slots(self) -> int:
        """Sequences of all models that are decoded at once."""
        return self.slots * max(1, len(self.models))

    @property
    def unfinished(self) -> int:
        """Sequences that wait or run."""
        return len(self._unfinished)

    def running(self) -> list[Job]:
        """Returns the sequences that have tokens."""
        with self._lock:
            return [job for job in self._unfinished if job.first]

    def check_ready(self) -> None:
        """Raises ApiError 503 before the model is ready, and while the server stops."""
        if self.state != READY:
            raise _unavailable(self.state)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues sequences: all of them, or none.

        Raises ApiError: 503 while the server is not ready, 429 while the queue is full.
        """
        self.check_ready()
        most = self.slots + self.queue_size
        if len(jobs) > most:
            message = f"the request has {len(jobs)} sequences: at most {most} fit in the queue"
            raise ApiError(400, message, "n")
        with self._lock:
            self._check_thread()
            # Counted with the new jobs: a request of several sequences is accepted as one or not at
            # all.
            if self._waiting(jobs) > self.queue_size:
                self.counts["refused"] += 1
                message = f"the queue is full: {self._waiting()} sequences of {self.queue_size}"
                raise ApiError(429, f"{message}; try again later", code="queue_full")
            self._unfinished.update(jobs)
        for job in jobs:
            self._commands.put(functools.partial(self._submit, job))

    def _waiting(self, jobs: Sequence[Job] = ()) -> int:
        """Returns how many sequences have no slot, with `jobs` beside those that are unfinished.

        A model's slots are used by no other, so that one that is busy refuses no other's requests.
        """
        by_model = Counter(job.settings.model for job in (*self._unfinished, *jobs))
        return sum(max(0, count - self.slots) for count in by_model.values())

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends sequences without further events. Their slots are free for the next chunk."""
        with self._lock:
            # Those that have ended are not cancelled: their answer is complete.
            remaining = [job for job in jobs if job in self._unfinished]
            self._unfinished.difference_update(remaining)
        self.counts["cancelled"] += len(remaining)
        if remaining:
            self._commands.put(functools.partial(self._cancel, remaining))

    def call(self, call: Call) -> None:
        """Calls a function in the thread between two chunks, also while the server stops.

        Raises ApiError 503 if the thread has ended.
        """
        with self._lock:
            self._check_thread()
            self._calls.add(call)
        self._commands.put(functools.partial(self._call, call))

    def _check_thread(self) -> None:
        if self._has_ended:
            raise _unavailable(FAILED)

    def _call(self, call: Call) -> None:
        with self._lock:
            self._calls.discard(call)
        call.work()

    def _run(self) -> None:
        try:
            self.models = self._load()
            for number in range(len(self.models)):
                self._engines[number] = self._new_engine(number)
                self._warm_up(self._engines[number])
        except Exception as error:
            # The main thread reports it: a user's mistake as one line.
            self._end_thread(error, _unavailable(FAILED))
            return
        if self.state == STARTING:
            self.state = READY
        try:
            while self.state != FAILED:
                self._take_commands()
                if self._jobs:
                    self._end_late()
                    # The engines take turns, one chunk each, so that no model starves another.
                    for number in sorted({number for number, _ in self._jobs}):
                        self._advance(number)
        except Exception as error:
            # A defect ends the server, rather than let its clients wait for ever.
            failure = UserError(f"the engine ended: {one_line(error)}")
            self._end_thread(failure, engine_error(error))
            return
        self._end_thread(None, _unavailable(STOPPING))

    def _end_thread(self, failure: Exception | None, answer: ApiError) -> None:
        """Accepts no more commands, and answers those that will not be carried out."""
        with self._lock:
            self._has_ended = True
            jobs, calls = list(self._unfinished), list(self._calls)
            self._unfinished.clear()
            self._calls.clear()
        self.failure, self.state = failure, FAILED
        for job in jobs:
            job.listener(Event([], error=answer))
        for call in calls:
            call.refuse(answer)

    def _new_engine(self, number: int) -> Engine:
        model = self.models[number]
        vocab = min(model.config.vocab_size, model.tokenizer.vocab_size)
        # `least` fixes the length of the cache. A cache that grew would compile all programs again
        # while clients wait.
        return Engine(
            model,
            self.slots,
            vocab,
            least=self.context,
            piece=self._piece,
            prefix_cache=self._prefix_cache,
        )

    def _warm_up(self, engine: Engine) -> None:
        """Compiles the programs of an engine: one that compiles later makes all sequences wait."""
        for requests in self._warm_up_requests(engine):
            if self.state != STARTING:
                return  # the server stops
            engine.run(requests)

    def _warm_up_requests(self, engine: Engine) -> Iterator[list[Request]]:
        """Yields requests that an engine reads together, for each of its programs."""
        numbers = itertools.count()

        def request(length: int, temperature: float = 0.0, start: Sequence[int] = ()) -> Request:
            # Two new tokens: the first comes from the logits of the prompt, the second from a
            # decoding step.
            sampling = Sampling(temperature=temperature, max_new_tokens=2)
            room = self.context - 2 - len(start)
            ids = [engine.model.tokenizer.eos_id] * min(length, room)
            # No two prompts share what follows `start`: the engine would copy the second.
            ids[0] = next(numbers) % engine.model.config.vocab_size
            return Request([*start, *ids], sampling, on_tokens=_short_chunks)

        # The engine pads a number of prompts to a size of which they are more than half.
        sizes = [size for size in READ_SIZES if size < 2 * self.slots]
        most = min(self._warm_up_tokens, self._piece)
        lengths = sorted({bucket(n) for n in range(1, most + 1, 16)})
        # Decoding programs differ in the number of slots, in whether a quarter of the cache is
        # enough, and in whether any sequence draws at random.
        decoding = itertools.product(engine.widths, (1, bucket(self.context) // 4 + 1), (0.0, 1.0))
        for width, length, temperature in decoding:
            yield [request(length, temperature)] * width
        # Equal prompts: one is read and the others copy it, which compiles the program that copies
        # slots.
        for size in READ_SIZES:
            copies = min(size, self.slots - 1)
            if copies and size_of(copies) == size:
                yield [request(lengths[0])] * (copies + 1)
        # Programs that read first pieces, for each bucket of lengths and each size of a batch.
        for length, size in itertools.product(lengths, sizes):
            if size == 1 or size * length <= self._piece:
                yield [request(length) for _ in range(min(size, self.slots))]
        # Pieces after a beginning that is read first.
        start = request(min(BLOCK, self.context // 2)).prompt
        pieces = sorted({min(piece_bucket(n), self._piece) for n in range(1, most + 1, 16)})
        yield [Request(start, Sampling(max_new_tokens=2))]
        for length, size in itertools.product(pieces, sizes):
            if size == 1 or size * bucket(length) <= self._piece:
                yield [request(length, start=start) for _ in range(min(size, self.slots))]

    def _take_commands(self) -> None:
        """Carries out the commands in the queue; waits for one where nothing is to decode."""
        if not self._jobs:
            self._commands.get()()
        # Only those that are queued already: a flood of requests must not stop the decoding.
        for _ in range(self._commands.qsize()):
            self._commands.get()()

    def _submit(self, job: Job) -> None:
        if job not in self._unfinished:
            return  # its client has left
        number = job.settings.model
        try:
            request = self._engines[number].submit(self._request(job))
            self._jobs[number, request] = job
        except UserError as error:
            self._fail(job, ApiError(400, str(error)))
        except Exception as error:
            self._fail(job, engine_error(error))

    def _request(self, job: Job) -> Request:
        prompt, first = job.prompt, None
        if prompt.healed is not None:
            model = self.models[job.settings.model]
            # Healing runs the model, so that it must happen in this thread. The listener's text
            # needs the new decode, which leaves out the characters removed; `Generation._text`
            # fetches it.
            (ids,), decode, (first,) = healed_prompts(model, [prompt.ids], [prompt.healed])
            decode = functools.partial(decode, 0)
            prompt = dataclasses.replace(prompt, ids=ids, decode=decode, healed=None)
            job.prompt = prompt
        return Request(
            prompt.ids,
            job.settings.sampling,
            prompt.stop_ids,
            stop_of(prompt, job.settings),
            _short_chunks,
            job.number,
            first,
        )

    def _advance(self, number: int) -> None:
        """Runs a chunk of the sequences of a model."""
        started = time.monotonic()
        try:
            updates = self._engines[number].advance()
        except Exception as error:
            self._recover(number, error)
            return
        now = time.monotonic()
        for update in updates:
            # A cancelled request may have updates that were made before.
            job = self._jobs.get((number, update.request))
            if job is None:
                continue
            self._take(job, update, started, now)
            if update.is_finished:
                del self._jobs[number, update.request]
                self._end(job, Event([], DONE))

    def _take(self, job: Job, update: Update, started: float, now: float) -> None:
        """Passes new ids to the listener of a sequence."""
        ids = update.ids
        # An update without ids reports that the prompt is being read.
        if not (ids or update.is_finished):
            job.started, job.reused = started, update.reused
            return
        if not job.first:
            job.first, job.count_of_first = now, len(ids)
            self.counts["prompt_tokens"] += len(job.prompt.ids)
            self.counts["prompt_tokens_reused"] += job.reused
            self.counts["prompt_microseconds"] += int(1e6 * (now - job.started))
        else:
            self.counts["predicted_microseconds"] += int(1e6 * (now - job.last))
        self.counts["predicted_tokens"] += len(ids)
        job.last = now
        job.count += len(ids)
        if ids and job in self._unfinished:
            job.listener(Event(ids))

    def _end_late(self) -> None:
        """Ends the sequences whose time is over."""
        now = time.monotonic()
        for key, job in list(self._jobs.items()):
            if job.deadline_passed(now):
                self._remove(key)
                self._end(job, Event([], TIME))

    def _remove(self, key: tuple[int, int]) -> None:
        number, request = key
        self._engines[number].cancel(request)
        del self._jobs[key]

    def _recover(self, number: int, error: Exception) -> None:
        """Ends the sequences of a model that did not fit in memory; the others continue.

        The engine drops requests that it refuses before they start. After any other error its
        arrays may be lost. A new engine then generates the remaining sequences again from their
        prompts: their ids are the same, since draws depend on the request alone.
        """
        jobs = {key: job for key, job in self._jobs.items() if key[0] == number}
        if isinstance(error, UserError):
            engine = self._engines[number]
            dropped = {key: job for key, job in jobs.items() if not engine.holds(key[1])}
            # This name would keep the engine's arrays alive while a new engine takes their place.
            del engine
        else:
            # The error does not name its request. Most likely the sequences that were about to
            # join, as many as there were free slots, needed more memory than was left.
            waiting = {key: job for key, job in jobs.items() if not job.first}
            free = self.slots - (len(jobs) - len(waiting))
            # Where no sequence was to join, the memory does not suffice for those that run.
            dropped = dict(itertools.islice(waiting.items(), free)) or jobs
        answer = engine_error(error)
        for key, job in dropped.items():
            del self._jobs[key]
            self._fail(job, answer)
        self.counts["failed"] += len(dropped)
        # The engine refused before it touched its arrays, and it continues as it is.
        if isinstance(error, UserError) and dropped:
            return
        remaining = [self._jobs.pop(key) for key in jobs if key not in dropped]
        del self._engines[number]  # there may be no memory for two
        self._engines[number] = self._new_engine(number)
        for job in remaining:
            self._submit_again(job)

    def _submit_again(self, job: Job) -> None:
        """Generates a sequence from its start, and passes on only ids that it has not had yet."""
        known, listener = job.count, job.listener
        job.count = 0

        def skip(event: Event) -> None:
            before = job.count - len(event.ids)
            # `job.count` has grown by these ids already; `before` is where they begin. The first
            # `known` of the sequence were sent before the error.
            ids = event.ids[max(0, known - before) :]
            if ids or event.reason or event.error:
                listener(event._replace(ids=ids))

        job.listener = skip
        self._submit(job)

    def _cancel(self, jobs: Sequence[Job]) -> None:
        cancelled = set(jobs)  # thousands may wait
        for key, job in list(self._jobs.items()):
            if job in cancelled:
                self._remove(key)

    def _finish(self) -> None:
        self.state = FAILED

    def _fail(self, job: Job, error: ApiError) -> None:
        self._end(job, Event([], error=error))

    def _end(self, job: Job, event: Event) -> None:
        with self._lock:
            is_new = job in self._unfinished
            self._unfinished.discard(job)
        if is_new:
            job.listener(event)


def _short_chunks(ids: list[int]) -> None:
    """Makes the engine's chunks short, so that clients get tokens, and cancel, without delay."""


def _unavailable(state: str) -> ApiError:
    return ApiError(503, f"the server is not ready: {state}", code="unavailable")


def engine_error(error: Exception) -> ApiError:
    """Returns the answer to an error of the device, and prints the error as one line."""
    is_full = isinstance(error, UserError) or FULL_MEMORY in str(error)
    kind = "out of memory" if is_full else "error in the engine"
    note(f"{kind}, a request is answered with 503: {one_line(error)}")
    if is_full:
        fix = "send a shorter prompt, or try again later"
        return ApiError(503, f"out of memory: {fix}", code="out_of_memory")
    return ApiError(503, "the engine failed: try again", code="engine_error")
