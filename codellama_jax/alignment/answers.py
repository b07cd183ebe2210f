"""Answers of a model, kept in files so that a process that was killed continues where it ended.

Each answer is one line {"task_id", "sample", "text"}. Its PRNG key is made from the request's name
alone: the answers are the same whatever was answered before, and in which batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.samples import Key, append, continue_file, key, name_of
from codellama_jax.tokenizers.chat import Message

FIELDS = {"text": TEXT}
Item = TypeVar("Item")


class Request(NamedTuple):
    """A conversation that a model is to answer."""

    name: str  # unique in a folder; the PRNG key of the answer is made from it
    messages: list[Message]


# Returns the answer to each request. It may be called with any number of them.
Answerer = Callable[[Sequence[Request]], list[str]]


def answered(
    answerer: Answerer, conversations: dict[Key, list[Message]], path: Path, batch: int
) -> dict[Key, str]:
    """Returns the answer to each conversation, by its key.

    Answers that `path` holds are read, and the others appended to it batch by batch.

    Args:
        answerer: answers the requests.
        conversations: to answer, by task_id and number.
        path: a file of JSON lines that only this function writes, for one set of conversations.
        batch: requests that are answered at once.
    """
    texts = {key(line): line["text"] for line in continue_file(path, FIELDS)}
    missing = [name for name in conversations if name not in texts]
    for names in batches(missing, batch):
        requests = []
        for name in names:
            requests.append(Request(f"{path.stem} {name_of(*name)}", conversations[name]))
        lines = []
        for name, answer in zip(names, answerer(requests), strict=True):
            texts[name] = text = storable(answer)
            lines.append({"task_id": name[0], "sample": name[1], "text": text})
        append(path, lines)
    return {name: texts[name] for name in conversations}


def storable(text: str) -> str:
    """Returns an answer with `?` for lone surrogates, which no file and no tokenizer takes."""
    return text.encode(errors="replace").decode()


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yields the items in order, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
