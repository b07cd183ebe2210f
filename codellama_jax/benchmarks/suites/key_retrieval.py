"""Key retrieval (Code Llama, section 3.3.2 and table 17): a number hidden in long code.

The prompt is filler code with a function that returns a two-digit number, the key, at a relative
position. It ends with `assert my_function() == `, and the model must write the number. The filler
may be any Python code; the paper uses solutions of CodeContests.
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
    from codellama_jax.tokenizers.base import Tokenizer

# The note is in a separate return statement, as in the paper.
KEY = """
def my_function() -> int:
    return "Note: this function is used at the end."
    return {value}

"""
# Endings of the filler's files.
KINDS = (".py", ".txt")
END = "\nassert my_function() == "
GROUPS = (
    *("8000@0", "8000@0.2", "8000@0.4"),
    *("16000@0", "16000@0.2", "16000@0.4"),
    *("24000@0", "24000@0.2", "24000@0.4"),
)
# Code Llama, table 17.
PAPER = Paper(
    crossed(GROUPS, ("retrieved",)),
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
    """Returns `options.examples` tasks for each context length and position of the key.

    Raises UserError without a tokenizer, and if the filler is shorter than a prompt.
    """
    if tokenizer is None:
        raise UserError(
            "key_retrieval writes prompts of a given number of tokens: pass --run, whose "
            "tokenizer counts them"
        )
    texts = (text_of(file) for file in files_of(options.data, KINDS))
    # Encoded once: all tasks share the lines.
    lines = list(lines_of(texts, tokenizer))
    tasks = []
    for length in options.lengths:
        for position in options.positions:
            for number in range(options.examples):
                tasks.append(task_of(lines, tokenizer, length, position, number))
    return Benchmark(
        "key_retrieval", tasks, max_new_tokens=8, truncate=until(("\n",)), judge=_judge, paper=PAPER
    )


def lines_of(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """Yields every line of the filler with its number of tokens.

    The numbers of lines add up to that of the text, because no token spans a newline.
    """
    for text in texts:
        for line in f"{text.rstrip()}\n\n".splitlines(keepends=True):
            yield line, len(tokenizer.encode(line, leading_space=False))


def task_of(
    lines: list[tuple[str, int]], tokenizer: Tokenizer, length: int, position: float, number: int
) -> Task:
    """Returns a task with the key hidden in a prompt of at most `length` tokens.

    Args:
        lines: (line, number of tokens) of the filler.
        tokenizer: counts the tokens of the key.
        length: of the prompt, in tokens.
        position: of the key, as a fraction of the filler's tokens.
        number: with `length`, seeds the choice of the key and of the filler's first line.

    Raises UserError for a length without room for the key, and for too little filler.
    """
    # Without the position: all positions of one number hide the same key in the same filler.
    rng = Random(f"{length} {number}")
    value = rng.randint(10, 99)
    key = KEY.format(value=value)
    # Two tokens more: BOS, and the space that SentencePiece puts before a text.
    fixed = len(tokenizer.encode(key + END)) + 2
    room = length - fixed
    if room < 0:
        raise UserError(
            f"--lengths {length} has no room for the key, which takes {fixed} tokens: pass a larger"
            " one"
        )
    start = rng.randrange(len(lines))
    before: list[str] = []
    after: list[str] = []
    used = 0
    # The filler continues at its first line after its last one.
    for i in range(start, start + len(lines)):
        line, tokens = lines[i % len(lines)]
        # Complete lines only, so the prompt may be a few tokens shorter than `length`.
        if used + tokens > room:
            break
        part = after if used + tokens > position * room else before
        part.append(line)
        used += tokens
    else:
        raise UserError(
            f"the filler has {used:,} tokens and a prompt of {length:,} needs {room:,}: give "
            "more files, or shorter --lengths"
        )
    group = f"{length}@{position:g}"
    prompt = "".join(before) + key + "".join(after) + END
    return Task(
        f"{group}/{number}", prompt, reference=f"{value}\n", group=group, record={"value": value}
    )


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    # The full number at the start: a third digit after the key makes another number.
    number = re.match(r"\s*(\d+)", sample["completion"])
    is_retrieved = number is not None and int(number[1]) == task.record["value"]
    return {"retrieved": float(is_retrieved)}


SUITE = Suite(load, KeyOptions, texts=KINDS)
