"""Options of an evaluation, which check their own values.

So the command line and the library report the same mistakes. Imports neither JAX nor Flax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import tyro

from codellama_jax.checked import choices_problem
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import Sampling
from codellama_jax.tokenizers.chat import FORMATS
from codellama_jax.tokenizers.chat_template import NAME as TEMPLATE

Mode = Literal["isolated", "compatible"]
BACK_TRANSLATION = "back-translation"
Rank = Literal["mean", "sum", "back-translation"]
AUTO, NO_CHAT = "auto", "none"  # of --chat-format
CHAT_FORMATS = (AUTO, NO_CHAT, *FORMATS, TEMPLATE)
Prompt = Literal["code_llama", "codex", "codegeex", "pangu_coder2", "starcoder"]
PROMPT = "The prompt and stop rules of a paper, of those that this benchmark has."
SHOTS = "Solved examples in the prompt; -1: the paper's number, 0: a prompt for Instruct models."
MANY = 1_000_000  # upper limit of counts: a larger number is most likely a typing error
MAX_WORKERS = 256
DATA = (
    "A published file or folder (.jsonl, .jsonl.gz, .json); for key_retrieval and perplexity text"
    " files. `tfds:NAME` downloads one."
)
MODE = (
    "isolated: tests and their values out of the program's reach. compatible: one program, as"
    " public harnesses do."
)

CHAT_FORMAT = (
    "How humaneval, mbpp --shots 0 and false_refusal prompt a chat model: auto takes its own"
    f" template or the format of its training; {', '.join(CHAT_FORMATS[2:])}; none continues the"
    " paper's prompt."
)
RANK = (
    "Also report pass@1 of the one sample per task that each of these ranks first: mean and sum of"
    " its tokens' log-probabilities, back-translation."
)
DOCSTRING_RUN = (
    "For --rank back-translation: the folder of a run that was trained to write the docstring after"
    " a function."
)


def check_integer(option: str, value: Any, low: int, high: int = MANY) -> None:
    """Raises UserError unless `value` is an integer from `low` to `high`, inclusive."""
    # `type(...)`, because a boolean is an instance of int.
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{option} must be an integer from {low} to {high}, not {value!r}")


def check_real(option: str, value: Any, low: float, high: float, above: bool = False) -> None:
    """Raises UserError unless `value` is a number from `low` to `high`, inclusive.

    Args:
        option: as on the command line, for the message.
        value: the value to check.
        low: the smallest allowed number.
        high: the largest allowed number.
        above: excludes `low` itself.
    """
    allowed = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    # NaN fails the comparisons below.
    is_number = type(value) in (int, float)
    if not is_number or not low <= value <= high or (above and value == low):
        raise UserError(f"{option} must be a number {allowed}, not {value!r}")


def check_list(option: str, value: Any) -> None:
    """Raises UserError unless `value` is a list or tuple with at least one item."""
    if not isinstance(value, tuple | list):
        raise UserError(f"{option} must be a list of numbers, not {value!r}")
    if not value:
        raise UserError(f"{option} needs at least one value")


def described(text: str) -> Any:
    """Returns the annotation that gives an option its help text."""
    return tyro.conf.arg(help=text)


@dataclass(frozen=True)
class Options:
    """Where a benchmark's data is: the base class of every suite's options.

    A suite with more options has a subclass in its file. Options of several suites with the same
    name must have the same type and default, because the command line shows them as one.
    """

    data: Annotated[str, described(DATA)] = ""

    @property
    def writes(self) -> bool:
        """Whether the model writes answers; False where it only scores texts that exist."""
        return True


def check_prompt(prompt: Any, allowed: Sequence[str]) -> None:
    """Raises UserError unless `prompt` is one of the allowed papers."""
    if prompt not in allowed:
        names = ", ".join(allowed)
        raise UserError(f"--prompt of this benchmark must be one of {names}, not {prompt!r}")


@dataclass(frozen=True)
class PromptOptions(Options):
    """Options of a suite with the prompts of all papers."""

    prompt: Annotated[Prompt, described(PROMPT)] = "code_llama"

    def __post_init__(self) -> None:
        check_prompt(self.prompt, get_args(Prompt))


@dataclass(frozen=True)
class ShotOptions(Options):
    """Options of a suite with solved examples in its prompts."""

    shots: Annotated[int, described(SHOTS)] = -1

    def __post_init__(self) -> None:
        check_integer("--shots", self.shots, -1)

    def difference(self, *published: int) -> str:
        """Returns how the prompts differ from those with the papers' numbers of solved examples.

        The text is for `Benchmark.task_difference`: "" without a difference.
        """
        if self.shots in (-1, *published):
            return ""
        numbers = " or ".join(map(str, published))
        prompts = f"the prompts have --shots {self.shots} solved examples"
        return f"{prompts}, and the papers' numbers are for {numbers}"


@dataclass(frozen=True)
class LengthOptions(Options):
    """Options of a suite that reads text files at several context lengths."""

    # Another help text than the base class has: these suites read texts instead of records.
    data: Annotated[str, described("Text files: a file or a folder.")] = ""
    lengths: Annotated[tuple[int, ...], described("Context lengths in tokens.")] = (
        8000,
        16000,
        24000,
    )

    def __post_init__(self) -> None:
        check_list("--lengths", self.lengths)
        for length in self.lengths:
            check_integer("--lengths", length, 1, 1 << 24)


@dataclass(frozen=True)
class Settings:
    """How answers are sampled: by default as in the paper."""

    samples: int = 1
    """Samples per task; the paper's pass@10 and pass@100 use 200."""
    temperature: float | None = None
    """0 for one sample and the paper's for more, unless given."""
    top_p: float | None = None
    """Sample from the most likely tokens that hold this share of the probability; 0.95 or the
    paper's unless given."""
    seed: int = 0
    """PRNG seed: the same seed draws the same samples."""
    max_new_tokens: int = 0
    """Stop an answer after this many tokens; 0 takes the benchmark's number."""
    spm: bool = False
    """Infilling: suffix-prefix-middle order instead of prefix-suffix-middle."""
    context_tokens: int = 0
    """Use only this many tokens at the end of each prompt; 0 uses the full prompt."""
    batch_tokens: int = 65_536
    """Tokens of prompts and answers of the samples that are drawn at once; bounds the memory."""
    beams: int = 1
    """Beam search of this width at temperature 0; with --samples, a task's samples are its best."""
    length_penalty: float = 1.0
    """Beam search: divide log-probabilities by the number of tokens to this power."""
    chat_format: Annotated[str, tyro.conf.arg(help=CHAT_FORMAT)] = AUTO

    def __post_init__(self) -> None:
        check_integer("--samples", self.samples, 1, 100_000)
        check_integer("--context-tokens", self.context_tokens, 0, 1 << 24)
        check_integer("--batch-tokens", self.batch_tokens, 1, 1 << 40)
        # What the model will be given once it is loaded checks its own values; the benchmark fills
        # in those that are not given.
        given: dict[str, Any] = {}
        if self.temperature is not None:
            given["temperature"] = self.temperature
        if self.top_p is not None:
            given["top_p"] = self.top_p
        if type(self.max_new_tokens) is not int or self.max_new_tokens:
            given["max_new_tokens"] = self.max_new_tokens
        Sampling(**given, seed=self.seed, beams=self.beams, length_penalty=self.length_penalty)
        if self.chat_format not in CHAT_FORMATS:
            raise UserError(f"--chat-format{choices_problem(self.chat_format, CHAT_FORMATS)}")
        # A beam search of width n finds n texts, so that more samples do not exist.
        if 1 < self.beams < self.samples:
            raise UserError(
                f"--samples {self.samples} is more than --beams {self.beams}, which find that many"
                " texts: pass fewer samples or more beams"
            )


@dataclass(frozen=True)
class Checking:
    """How samples are scored, and how their programs are run."""

    mode: Annotated[Mode, tyro.conf.arg(help=MODE)] = "isolated"
    workers: int | None = None
    """How many programs run at once; by default one per core."""
    allow_unsafe: bool = False
    """Run programs even if this machine cannot isolate them."""
    jars: tuple[str, ...] = ()
    """Java archives that tests need, such as javatuples for multipl_e."""
    partial: bool = False
    """Score a samples file although some tasks have no sample; the result reports their number."""
    extract_code: bool = False
    """Score the code inside a completion's markdown fence, without invisible characters."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(f"--mode must be one of {', '.join(get_args(Mode))}, not {self.mode!r}")
        if self.workers is not None:
            check_integer("--workers", self.workers, 1, MAX_WORKERS)


@dataclass(frozen=True)
class Ranking:
    """How one of several samples is chosen without tests (Codex, sections 3.3 and 5)."""

    rank: Annotated[tuple[Rank, ...], tyro.conf.arg(help=RANK)] = ()
    docstring_run: Annotated[str, tyro.conf.arg(help=DOCSTRING_RUN)] = ""

    def __post_init__(self) -> None:
        for name in self.rank:
            if name not in get_args(Rank):
                raise UserError(f"--rank must be of {', '.join(get_args(Rank))}, not {name!r}")
        # Either option without the other would be ignored, so that both cases are mistakes.
        needs_model = BACK_TRANSLATION in self.rank
        if needs_model and not self.docstring_run:
            raise UserError(
                f"--rank {BACK_TRANSLATION} needs a model of docstrings: pass --docstring-run RUN"
            )
        if self.docstring_run and not needs_model:
            raise UserError(f"--docstring-run has no effect without --rank {BACK_TRANSLATION}")
