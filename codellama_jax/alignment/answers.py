"""Answers of a model, kept in files so that a process that was killed continues where it ended.

Each answer is one line {"task_id", "sample", "text"}. Its PRNG key is made from the request's name
alone: the answers are the same whatever was answered before, and in which batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.samples import Key, append, continue_file, key, name_of
from codellama_jax.tokenizers.chat import Message

FIELDS = {"text": TEXT}


class Request(NamedTuple):
    """A conversation that a model is to answer."""

    name: str  # unique in a folder; the PRNG key of the answer is made from it
    messages: list[Message]


# Yields the index of each request and its answer, in any order, as soon as it ends. The number is
# that of the requests that are answered at once.
Answerer = Callable[[Sequence[Request], int], Iterable[tuple[int, str]]]


def answered(
    answerer: Answerer, conversations: dict[Key, list[Message]], path: Path, batch: int
) -> dict[Key, str]:
    """Returns the answer to each conversation, by its key.

    Answers that `path` holds are read, and the others appended to it as they end, a batch at once.

    Args:
        answerer: answers the requests.
        conversations: to answer, by task_id and number.
        path: a file of JSON lines that only this function writes, for one set of conversations.
        batch: requests that are answered at once.
    """
    texts = {key(line): line["text"] for line in continue_file(path, FIELDS)}
    missing = [name for name in conversations if name not in texts]
    requests = []
    for name in missing:
        requests.append(Request(f"{path.stem} {name_of(*name)}", conversations[name]))
    for ended in batches(answerer, requests, batch):
        lines = []
        for index, text in ended:
            name = missing[index]
            texts[name] = text
            lines.append({"task_id": name[0], "sample": name[1], "text": text})
        append(path, lines)
    return {name: texts[name] for name in conversations}


def batches(
    answerer: Answerer, requests: Sequence[Request], size: int
) -> Iterator[list[tuple[int, str]]]:
    """Yields the indices of requests and their answers as they end, `size` at a time.

    Without requests the answerer is not called, since it may have to load a model.
    """
    answers = iter(answerer(requests, size) if requests else ())
    while batch := list(itertools.islice(answers, size)):
        yield batch
