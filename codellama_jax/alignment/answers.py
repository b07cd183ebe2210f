"""Answers of a model, kept in files so that a process that was killed continues where it ended.

Each answer is one line {"task_id", "sample", "text"}. Its PRNG key is made from the request's name
alone: the answers are the same whatever was answered before, and in which batches. A request that
failed has an empty text and a `failure`, the reason: it is counted and not made again.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from codellama_jax.benchmarks.fields import TEXT, optional
from codellama_jax.benchmarks.samples import Key, append, continue_file, key, name_of
from codellama_jax.errors import UserError
from codellama_jax.tokenizers.chat import Message

FIELDS = {"text": TEXT, "failure": optional(TEXT)}
# So many failed requests without an answer between them are the model's fault, not the requests'.
MOST_FAILED = 8
Part = TypeVar("Part")
Result = TypeVar("Result")


class Request(NamedTuple):
    """A conversation that a model is to answer, or a text that it is to continue."""

    name: str  # unique in a folder; the PRNG key of the answer is made from it
    messages: list[Message]
    prompt: str = ""  # continued as it is, without a chat format; there are no messages then
    is_program: bool = False  # the continuation is a program of several definitions


class Failure(NamedTuple):
    """Why a model gave no answer to a request."""

    reason: str  # as in "URL answers 400 Bad Request"
    source: str = ""  # the URL
    detail: str = ""  # what the server wrote about it
    is_final: bool = False  # whether any other request would fail too
    is_of_request: bool = False  # whether the model is not to blame: it is kept like an answer

    def error(self) -> UserError:
        """Returns the error that ends the command."""
        detail = f" ({self.detail})" if self.detail else ""
        fix = "check the URL, the name of the model and the key; the same command continues"
        return UserError(f"{self.source} {self.reason}{detail}: {fix}")


Reply = str | Failure
# Yields the index of each request and the reply to it, in any order, as soon as it ends. The number
# is that of the requests that are answered at once.
Answerer = Callable[[Sequence[Request], int], Iterable[tuple[int, Reply]]]


def answered(
    answerer: Answerer, conversations: dict[Key, list[Message]], path: Path, batch: int
) -> dict[Key, Reply]:
    """Returns the reply to each conversation, by its key.

    Replies that `path` holds are read, and the others appended to it as they end, a batch at once.
    Raises UserError as `replies` does.

    Args:
        answerer: answers the requests.
        conversations: to answer, by task_id and number.
        path: a file of JSON lines that only this function writes, for one set of conversations.
        batch: requests that are answered at once.
    """
    known: dict[Key, Reply] = {}
    for line in continue_file(path, FIELDS):
        reason = line.get("failure")
        known[key(line)] = Failure(reason) if reason else line["text"]
    # A kept failure is known as well: the request was at fault and would fail again.
    missing = [name for name in conversations if name not in known]
    requests = []
    for name in missing:
        requests.append(Request(f"{path.stem} {name_of(*name)}", conversations[name]))
    has_answers = any(isinstance(reply, str) for reply in known.values())
    for ready in replies(answerer, requests, batch, has_answers):
        lines = []
        for position, reply in ready:
            name = missing[position]
            known[name] = reply
            lines.append({"task_id": name[0], "sample": name[1], **line_of(reply)})
        append(path, lines)
    # In the order of the conversations, whatever the order in which the answers came.
    return {name: known[name] for name in conversations}


def storable(text: str) -> str:
    """Returns an answer with `?` for lone surrogates, which no file and no tokenizer takes."""
    return text.encode(errors="replace").decode()


def line_of(reply: Reply) -> dict[str, str]:
    """Returns the fields of a reply in a file."""
    if isinstance(reply, Failure):
        return {"text": "", "failure": reply.reason}
    return {"text": reply}


def replies(
    answerer: Answerer, requests: Sequence[Request], size: int, has_answers: bool
) -> Iterator[list[tuple[int, Reply]]]:
    """Yields lists of (position, reply) as they end, `size` at a time, for the caller to keep.

    A failed request is yielded with the next answers; without any, it is not kept, and the same
    command makes it again. One that is itself at fault counts as answered. Raises UserError for a
    failure that is final, for MOST_FAILED failures without an answer between them, and where no
    request at all was answered.

    Args:
        answerer: answers the requests.
        requests: to answer.
        size: requests that are answered at once.
        has_answers: whether this model answered requests of this kind before.
    """
    held: list[tuple[int, Reply]] = []
    # Without requests the answerer is not called, since it may have to load a model.
    answers = iter(answerer(requests, size) if requests else ())
    while batch := list(itertools.islice(answers, size)):
        kept: list[tuple[int, Reply]] = []
        failures: list[tuple[int, Reply]] = []
        last: Failure | None = None
        for position, reply in batch:
            if isinstance(reply, str):
                kept.append((position, storable(reply)))
                continue
            if reply.is_of_request:
                kept.append((position, reply))
                continue
            # Neither an answer nor the request's fault: whether it is kept depends on what comes
            # after it.
            failures.append((position, reply))
            last = reply if last is None or reply.is_final else last
        # Where the server ended, the requests of its last moments are not to blame.
        is_final = last is not None and last.is_final
        held += [] if is_final else failures
        # An answer after them shows that the server works, so that the held failures were the
        # requests'.
        if kept:
            has_answers = True
            yield sorted(kept + held, key=operator.itemgetter(0))
            held = []
        if last and (is_final or len(held) >= MOST_FAILED):
            raise last.error()
    if held and isinstance(held[0][1], Failure) and not has_answers:
        raise held[0][1].error()
    if held:
        yield held


def overlapped(parts: Iterable[Part], work: Callable[[Part], Result]) -> Iterator[Result]:
    """Yields `work(part)` for each part; it runs while the next part is made.

    The work of the last part is done even if the one after it cannot be made.
    """
    with ThreadPoolExecutor(1) as pool:
        running: Future[Result] | None = None
        for part in parts:
            if running:
                yield running.result()
            running = pool.submit(work, part)
        if running:
            yield running.result()
