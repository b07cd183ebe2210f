"""Key retrieval (Code Llama, section 3.3.2 and table 17).

A number hidden in long code, asked for at its end.

The filler is any Python code; the paper's are CodeContests' solutions. A function that returns a
two-digit number stands at a relative position in it; the model must end `assert my_function() == `.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Annotated

from codellama_jax.benchmarks.benchmark import Benchmark, Sample, Task, files_of, text_of, until
from codellama_jax.benchmarks.paper import Paper, crossed
from codellama_jax.benchmarks.settings import (
    LengthOptions,
    check_integer,
    check_list,
    check_real,
    described,
)
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.errors import UserError

if TYPE_CHECKING:
    from codellama_jax.tokenizers.sentencepiece import Tokenizer

KEY = """
def my_function() -> int:
    return "Note: this function is used at the end."
    return {value}

"""  # the note stands in a return statement of its own, as the paper's does
KINDS = (".py", ".txt")
END = "\nassert my_function() == "
# Code Llama, table 17.
PAPER = Paper(
    crossed(
        (f"{length}@{p}" for length in (8000, 16000, 24000) for p in (0, 0.2, 0.4)),
        ("retrieved",),
    ),
    """
        Code Llama 7B 100 95.3 100 54.7 100 98.4 3.1 85.9 85.9
        Code Llama 13B 100 100 100 100 100 100 100 89.1 6.3
        Code Llama 34B 76.6 100 100 95.3 96.9 100 81.3 0.0 81.3""",
)


@dataclass(frozen=True)
class KeyOptions(LengthOptions):
    """Options of key retrieval."""

    positions: Annotated[
        tuple[float, ...], described("Position of the key, as a fraction of the context.")
    ] = (0.0, 0.2, 0.4)
    examples: Annotated[int, described("Examples for each length and position.")] = 64

    def __post_init__(self):
        super().__post_init__()
        check_integer("--examples", self.examples, 1)
        check_list("--positions", self.positions)
        for position in self.positions:
            check_real("--positions", position, 0, 1)


def load(options: KeyOptions, tokenizer: Tokenizer | None = None) -> Benchmark:
    """Examples of each length and position begin at different lines of the filler, drawn from
    the number of tokens.
    """
    if tokenizer is None:
        raise UserError(
            "key_retrieval writes prompts of a given number of tokens: pass --run, whose "
            "tokenizer counts them"
        )
    texts = (text_of(file) for file in files_of(options.data, KINDS))
    lines = list(lines_of(texts, tokenizer))
    tasks = [
        task_of(lines, tokenizer, length, position, number)
        for length in options.lengths
        for position in options.positions
        for number in range(options.examples)
    ]
    return Benchmark(
        "key_retrieval", tasks, max_new_tokens=8, cut=until(("\n",)), judge=_judge, paper=PAPER
    )


def lines_of(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """Yields every line of the filler with its number of tokens; no piece goes across a newline."""
    for text in texts:
        yield from (
            (line, len(tokenizer.encode(line, leading_space=False)))
            for line in f"{text.rstrip()}\n\n".splitlines(keepends=True)
        )


def task_of(
    lines: list[tuple[str, int]], tokenizer: Tokenizer, length: int, position: float, number: int
) -> Task:
    """Hides a key at a relative position in a prompt of `length` tokens.

    Which key and filler hangs on length and number.
    """
    rng = Random(f"{length} {number}")
    value = rng.randint(10, 99)
    key = KEY.format(value=value)
    room = length - len(tokenizer.encode(key + END)) - 2  # BOS, and the space before any text
    start = rng.randrange(len(lines))
    parts: tuple[list[str], list[str]] = ([], [])
    used = 0
    for i in range(start, start + len(lines)):
        line, tokens = lines[i % len(lines)]
        if used + tokens > room:
            break
        parts[used + tokens > position * room].append(line)
        used += tokens
    else:
        raise UserError(
            f"the filler has {used:,} tokens and a prompt of {length:,} needs {room:,}: give "
            "more files, or shorter --lengths"
        )
    name = f"{length}@{position:g}"
    prompt = "".join(parts[0]) + key + "".join(parts[1]) + END
    return Task(
        f"{name}/{number}", prompt, reference=f"{value}\n", group=name, record={"value": value}
    )


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    found = re.match(r"\s*(\d+)", sample["completion"])
    return {"retrieved": float(found is not None and int(found[1]) == task.record["value"])}


SUITE = Suite(load, KeyOptions, texts=KINDS)
