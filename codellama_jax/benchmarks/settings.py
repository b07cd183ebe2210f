"""Options of an evaluation, checked here for the command line and the library alike.

Imports neither JAX nor Flax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import tyro

from codellama_jax.errors import UserError

Mode = Literal["isolated", "compatible"]
DATA = "A published file or folder (.jsonl, .jsonl.gz, .json), or tfds:NAME, which is downloaded."
SHOTS = "Solved examples in the prompt; -1: the paper's number, 0: a prompt for Instruct models."
MANY = 1_000_000  # upper limit of counts: beyond it a typing error is more likely than a wish
MAX_WORKERS = 256
MAX_SEED = 2**32 - 1  # a PRNG key of JAX holds no more without 64-bit types
DATA = (
    "A published file or folder (.jsonl, .jsonl.gz, .json); for key_retrieval and perplexity text"
    " files. `tfds:NAME` downloads one."
)
MODE = (
    "isolated: tests and their values out of the program's reach. compatible: one program, as"
    " public harnesses do."
)


def check_integer(option: str, value: Any, low: int, high: int = MANY) -> None:
    """Raises UserError unless `value` is an integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{option} must be an integer from {low} to {high}, not {value!r}")


def check_real(option: str, value: Any, low: float, high: float, above: bool = False) -> None:
    """Raises UserError unless `value` is finite and from `low` (or, with `above`, more) to
    `high`.
    """
    allowed = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    number = type(value) in (int, float)
    if not number or not low <= value <= high or (above and value == low):
        raise UserError(f"{option} must be a number {allowed}, not {value!r}")


def check_list(option: str, value: Any) -> None:
    """Raises UserError unless `value` is a list or tuple with at least one item."""
    if not isinstance(value, tuple | list):
        raise UserError(f"{option} must be a list of numbers, not {value!r}")
    if not value:
        raise UserError(f"{option} needs at least one value")


def described(text: str) -> Any:
    """Returns the help text of an option, to be annotated."""
    return tyro.conf.arg(help=text)


@dataclass(frozen=True)
class Options:
    """What a benchmark loads and how it prompts: the base of every suite's options.

    A suite with further options has a subclass in its file. Options of several suites with the same
    name have the same type and default.
    """

    data: Annotated[str, described(DATA)] = ""


@dataclass(frozen=True)
class ShotOptions(Options):
    """Options of a suite with solved examples in its prompts."""

    shots: Annotated[int, described(SHOTS)] = -1

    def __post_init__(self):
        check_integer("--shots", self.shots, -1)


@dataclass(frozen=True)
class LengthOptions(Options):
    """Options of a suite that reads text files at several context lengths."""

    data: Annotated[str, described("Text files: a file or a folder.")] = ""
    lengths: Annotated[tuple[int, ...], described("Context lengths in tokens.")] = (
        8000,
        16000,
        24000,
    )

    def __post_init__(self):
        check_list("--lengths", self.lengths)
        for length in self.lengths:
            check_integer("--lengths", length, 1, 1 << 24)


@dataclass(frozen=True)
class Settings:
    """How answers are sampled: as in the paper unless given."""

    samples: int = 1
    """Samples per task; the paper's pass@10 and pass@100 take 200."""
    temperature: float | None = None
    """0 for one sample and the paper's for more, unless given."""
    top_p: float = 0.95
    """Sample from the most likely tokens that hold this share of the probability."""
    seed: int = 0
    """PRNG seed: the same seed draws the same samples."""
    max_new_tokens: int = 0
    """Stop an answer after this many tokens; 0 takes the benchmark's number."""
    spm: bool = False
    """Infilling: suffix-prefix-middle order instead of prefix-suffix-middle."""
    context_tokens: int = 0
    """Read only so many tokens before the answer; 0 reads the full prompt."""
    batch_tokens: int = 65_536
    """Tokens of prompts and answers that a model holds at once; it bounds the memory."""

    def __post_init__(self):
        check_integer("--samples", self.samples, 1, 100_000)
        if self.temperature is not None:
            check_real("--temperature", self.temperature, 0, 1000)
        check_real("--top-p", self.top_p, 0, 1, above=True)
        check_integer("--seed", self.seed, 0, MAX_SEED)
        check_integer("--max-new-tokens", self.max_new_tokens, 0)
        check_integer("--context-tokens", self.context_tokens, 0, 1 << 24)
        check_integer("--batch-tokens", self.batch_tokens, 1, 1 << 40)


@dataclass(frozen=True)
class Checking:
    """How samples are scored, and how the programs that a model wrote are run."""

    mode: Annotated[Mode, tyro.conf.arg(help=MODE)] = "isolated"
    workers: int | None = None
    """Programs at once; one for each core unless given."""
    allow_unsafe: bool = False
    """Run programs even where this machine cannot isolate them."""
    jars: tuple[str, ...] = ()
    """Java archives that tests need, such as javatuples for multipl_e."""
    partial: bool = False
    """Score a samples file that has no sample of some tasks; the result says how many it has."""
    extract_code: bool = False
    """Score the code inside a completion's markdown fence, without stray invisible characters."""

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            raise UserError(f"--mode must be one of {', '.join(get_args(Mode))}, not {self.mode!r}")
        if self.workers is not None:
            check_integer("--workers", self.workers, 1, MAX_WORKERS)
